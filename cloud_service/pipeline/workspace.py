"""A job's private folder: results that survive SIGKILL, each written whole or not at all.

    input.json                 fingerprint of the input that the rest belongs to
    <name>.json                small results
    <name>.safetensors         tensors

A checkpoint of another input (or another version of the pipeline) is deleted at the start, so nothing stale is ever
mixed in; only the pinned commit, which the input is known by, stays. Files appear by rename after they were flushed.
Knows nothing about what they mean.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from cloud_service.sources import PINNED_COMMIT
from shared.bundle.write import serialization_errors
from shared.durable_files import disk_errors, free_bytes, replacing, sync_directory, write_atomically
from shared.errors import DiskError

_INPUT = "input.json"


def require_space(folder: Path, needed: int, what: str) -> None:
    """Refuse to begin what the disk cannot hold.

    Raises:
        DiskError: Fewer than ``needed`` bytes are free where ``folder`` lies.
    """
    if (free := free_bytes(folder)) < needed:
        raise DiskError(
            f"{free} bytes free for {what} in {folder}",
            needed=f"{needed} bytes",
            next_step="free some space and run the same command again; nothing was lost",
        )


class Workspace:
    """The checkpoints of one preparation or study.

    Args:
        folder: A folder that no other work uses.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def claim(self, fingerprint: str) -> bool:
        """Make the folder ready for the input of that fingerprint; return whether there is work to resume.

        Raises:
            DiskError: The folder cannot be written.
        """
        with disk_errors(self.folder):
            if self._claimed_for() == fingerprint:
                return True
            if self.folder.exists():
                for entry in (entry for entry in self.folder.iterdir() if entry.name != PINNED_COMMIT):
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self.folder / _INPUT, json.dumps({"fingerprint": fingerprint}).encode())
        return False

    def read_json(self, name: str) -> Any:
        """Return the result saved under ``name``, or None."""
        path = self.folder / f"{name}.json"
        return json.loads(path.read_bytes()) if path.exists() else None

    def write_json(self, name: str, result: Any) -> None:
        """Save a small result.

        Raises:
            DiskError: The disk is full or not writable.
        """
        with disk_errors(self.folder):
            write_atomically(self.folder / f"{name}.json", json.dumps(result, sort_keys=True).encode())

    def write_bytes(self, name: str, data: bytes) -> Path:
        """Save a file and return its path.

        Raises:
            DiskError: The disk is full or not writable.
        """
        path = self.folder / name
        with disk_errors(self.folder):
            write_atomically(path, data)
        return path

    def read_tensors(self, name: str) -> dict[str, Tensor] | None:
        """Return the tensors saved under ``name``, or None."""
        path = self._tensor_file(name)
        if not path.exists():
            return None
        return safetensors.torch.load_file(path)  # type: ignore[no-any-return]

    def read_tensor(self, name: str, key: str) -> Tensor:
        """Return one of the tensors saved under ``name``, which must exist."""
        with safetensors.safe_open(self._tensor_file(name), "pt") as file:
            return file.get_tensor(key)  # type: ignore[no-any-return]

    def read_labels(self, name: str) -> dict[str, str] | None:
        """Return the labels of the tensors saved under ``name``, or None."""
        path = self._tensor_file(name)
        if not path.exists():
            return None
        with safetensors.safe_open(path, "pt") as file:
            return dict(file.metadata() or {})

    def write_tensors(self, name: str, tensors: Mapping[str, Tensor], labels: Mapping[str, str]) -> None:
        """Save tensors and labels, replacing what was saved before in one rename.

        Raises:
            DiskError: The disk is full or not writable; what was saved before is kept.
        """
        path = self._tensor_file(name)
        temporary = path.with_suffix(".partial")
        with disk_errors(self.folder), replacing(path, temporary):
            with serialization_errors():
                safetensors.torch.save_file(dict(tensors), temporary, metadata=dict(labels))
            with temporary.open("rb") as file:
                os.fsync(file.fileno())

    def remove_tensors(self, name: str) -> None:
        """Delete the tensors saved under ``name``, if any.

        Raises:
            DiskError: The folder is not writable.
        """
        with disk_errors(self.folder):
            self._tensor_file(name).unlink(missing_ok=True)
            sync_directory(self.folder)

    def _tensor_file(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def _claimed_for(self) -> str | None:
        try:
            fingerprint = json.loads((self.folder / _INPUT).read_bytes())["fingerprint"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        return str(fingerprint)
