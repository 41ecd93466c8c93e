"""A run's folder: what was asked, what happened, and the values that came out.

    config.json         what the run is, for people and for ``eval --run``          written once
    machine.json        what of the machine decides bits; see ``machine_record``    replaced atomically
    journal.bin         one record per step; see ``journal``                        appended
    metrics.jsonl       one line per validation, and one per event                  appended
    last.safetensors    θ float32, the number of steps behind it, and what else     replaced atomically
                        the next step needs
    best.safetensors    θ of the lowest validation loss                             replaced atomically
    result.json         the outcome: a function of config, machine and journal      written at the end
    resources.json      seconds, memory, device: a function of the machine          written at the end
    loss.svg            the curve                                                   written at the end

Folder 0700, files 0600: they are functions of private rows. No prompt and no free text of a row is in any of them; of
labelled rows, config.json holds the template and each distinct label with its word.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from shared.bundle.read import Bundle
from shared.durable_files import disk_errors, write_atomically
from shared.errors import Conflict, IntegrityError, NotFound

CONFIG = "config.json"
_BEFORE_THE_END = (
    CONFIG, "journal.bin", "machine.json", "metrics.jsonl", "last.safetensors", "best.safetensors",
)  # fmt: skip
_FILE_MODE = 0o600
_THETA = "theta"
_VALIDATION_FIELDS = {"steps_done", "loss", "accuracy", "rows"}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a run goes on from.

    Attributes:
        theta: float32 (k,).
        steps_done: Steps behind it.
        state: What the engine of the steps keeps beside θ, by name.
        labels: What the file says of θ.
    """

    theta: Tensor
    steps_done: int
    state: Mapping[str, Tensor] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)


class RunDirectory:
    """The files of one run.

    Args:
        path: The folder; ``create`` makes it, the constructor touches nothing.
        labels: What its files of θ say of it: the method, and its numbers.
    """

    def __init__(self, path: Path, labels: Mapping[str, str] | None = None) -> None:
        self.path, self._labels = path, dict(labels or {})

    def create(self) -> None:
        """Make the folder where it is missing.

        Raises:
            DiskError: The disk is full or not writable.
        """
        with disk_errors(self.path):
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path.chmod(0o700)

    def files(self) -> frozenset[str] | None:
        """Return the names of all files in the folder, or None where there is no folder."""
        return frozenset(path.name for path in self.path.iterdir()) if self.path.exists() else None

    def discard(self, *, except_for: frozenset[str] | None) -> None:
        """Take a run without steps away.

        Args:
            except_for: What ``files`` returned before the run began: it stays, and so does a folder that was there.
        """
        with contextlib.suppress(OSError):  # what cannot be removed is no reason to hide why there is no run
            for name in _BEFORE_THE_END:
                if name not in (except_for or ()):
                    (self.path / name).unlink(missing_ok=True)
            if except_for is None:
                self.path.rmdir()

    @property
    def journal(self) -> Path:
        """The journal's file."""
        return self.path / "journal.bin"

    @property
    def name(self) -> str:
        """The run's name."""
        return self.path.name

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file atomically.

        Raises:
            DiskError: The disk is full or not writable.
        """
        self.write_bytes(name, json.dumps(content, indent=1, sort_keys=True).encode() + b"\n")

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a file atomically.

        Raises:
            DiskError: The disk is full or not writable.
        """
        with disk_errors(self.path / name):
            write_atomically(self.path / name, content, mode=_FILE_MODE)

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Return a JSON file's object, or None where there is no such file.

        Raises:
            IntegrityError: It is no JSON object.
        """
        try:
            content = json.loads((self.path / name).read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise IntegrityError(f"{self.path / name} is no JSON", next_step="restore it, or tune again") from error
        if not isinstance(content, dict):
            raise IntegrityError(f"{self.path / name} is no JSON object", next_step="restore it, or tune again")
        return content

    def read_config(self) -> dict[str, Any]:
        """Return what the run is.

        Raises:
            NotFound: There is no run in the folder.
            IntegrityError: Its configuration is damaged.
        """
        config = self.read_json(CONFIG)
        if config is None:
            raise NotFound(f"no run in {self.path}", needed="the folder of a tuning run", next_step="zo-device runs")
        settings = config.get("settings")
        is_whole = (
            isinstance(settings, dict) and "objective" in settings and {"rendering", "max_tokens"} <= config.keys()
        )
        if not is_whole:
            raise IntegrityError(
                f"{self.path / CONFIG} does not say what the run's rows and prompts were",
                needed="the file as zo-device tune wrote it",
                next_step="restore it from a copy, or tune again",
            )
        return config

    def append_metric(self, metric: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl and flush it; a torn last line is cut first.

        Raises:
            DiskError: The disk is full or not writable.
        """
        path = self.path / "metrics.jsonl"
        with disk_errors(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _FILE_MODE)
            with os.fdopen(descriptor, "r+b") as file:
                file.truncate(file.read().rfind(b"\n") + 1)
                file.seek(0, os.SEEK_END)
                file.write(json.dumps(metric, sort_keys=True).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())

    def metrics(self) -> list[dict[str, Any]]:
        """Return the whole lines of metrics.jsonl; a torn last line is passed over.

        Raises:
            IntegrityError: A whole line is damaged.
        """
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        lines = path.read_bytes().split(b"\n")[:-1]
        return [_metric(line, f"{path} line {number}") for number, line in enumerate(lines, start=1)]

    def write_theta(self, name: str, theta: Tensor, steps_done: int, state: Mapping[str, Tensor] | None = None) -> None:
        """Write θ, and what the engine of the steps keeps beside it, atomically.

        Raises:
            DiskError: The disk is full or not writable.
        """
        tensors = {key: value.cpu() for key, value in (state or {}).items()}
        tensors[_THETA] = theta.detach().to("cpu", torch.float32).contiguous()
        content = save(tensors, metadata=self._labels | {"steps_done": str(steps_done)})
        self.write_bytes(name, _with_sorted_header(content))

    def read_theta(self, name: str) -> Snapshot | None:
        """Return a written θ, or None where there is no such file.

        Raises:
            IntegrityError: The file is damaged or holds something else.
        """
        path = self.path / name
        if not path.exists():
            return None
        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  no mapping
            theta = tensors.pop(_THETA)
            steps_done = int(metadata.pop("steps_done"))
        except (SafetensorError, KeyError, ValueError, OSError) as error:
            raise IntegrityError(f"{path} is damaged", next_step="run the same tune command again") from error
        if theta.dtype != torch.float32 or theta.dim() != 1 or not bool(torch.isfinite(theta).all()):
            raise IntegrityError(f"{path} does not hold finite float32 values", next_step="tune again")
        return Snapshot(theta, steps_done, tensors, metadata)


def _with_sorted_header(content: bytes) -> bytes:
    """Return a safetensors file with its header in order: the library writes metadata in any, each time another."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[end:]


def _metric(line: bytes, place: str) -> dict[str, Any]:
    fault = IntegrityError(
        f"{place} is damaged",
        next_step="remove that file and run the same tune command again: it is made anew from the journal",
    )
    try:
        metric = json.loads(line)
    except ValueError as error:
        raise fault from error
    if not isinstance(metric, dict) or "kind" not in metric:
        raise fault
    if metric["kind"] == "validation" and not metric.keys() >= _VALIDATION_FIELDS:
        raise fault
    return metric


def find_run(runs: Path, name: str, bundle: Bundle) -> RunDirectory:
    """Return a run made from ``bundle``, given by name or by path.

    Raises:
        NotFound: There is no such run.
        Conflict: It was made from another bundle, so its values belong to other weights.
    """
    for folder in (runs / name, Path(name)):
        run = RunDirectory(folder)
        config = run.read_json(CONFIG)
        if config is None:
            continue
        if config.get("bundle_digest") != bundle.digest:
            raise Conflict(
                f"run {run.name} was made from bundle {config.get('bundle_digest')}",
                needed=f"a run of {bundle.digest}",
                next_step="name that bundle, or another run",
            )
        return run
    raise NotFound(f"no run {name!r} in {runs}", needed="a run's name or folder", next_step="zo-device runs")


def load_theta(path: Path, *, sensitive_count: int | None = None, method: str | None = None) -> Tensor:
    """Return a run's best θ, float32 (k,).

    Args:
        path: The run's folder.
        sensitive_count: How many it should have; None does not compare.
        method: What they should mean; None does not compare.

    Raises:
        NotFound: It is no run, or has no best values yet.
        Conflict: It has another number of values, or values of another method.
        IntegrityError: The values are damaged.
    """
    snapshot = RunDirectory(path).read_theta("best.safetensors")
    if snapshot is None:
        raise NotFound(f"no tuned values in {path}", needed="the folder of a tuning run", next_step="zo-device runs")
    of_method = snapshot.labels.get("method", "sparse")  # files of earlier releases do not name it
    if method not in (None, of_method):
        raise Conflict(
            f"values of method {of_method} in {path}",
            needed=f"values of method {method}, which the run's configuration names",
            next_step="restore config.json and best.safetensors of the same run, or tune again",
        )
    if sensitive_count not in (None, snapshot.theta.numel()):
        raise Conflict(
            f"{snapshot.theta.numel()} tuned values in {path}",
            needed=f"{sensitive_count}, as many as the bundle has",
            next_step="zo-device runs",
        )
    return snapshot.theta
