"""Keeps a preparation at the commit that it began with, although the branch moves on or the hub is down meanwhile.

    WORKSPACE/commit.json      model, revision, GGUF file · commit, sizes of its files

Without it a resumed preparation would ask the hub again, and where the branch has moved its checkpoints would be those
of another input. Knows nothing about the hub's protocol.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cloud_service.pipeline.model.hub import Snapshot, find_snapshot
from cloud_service.sources import PINNED_COMMIT, HubModel, SourcePolicy
from shared.durable_files import disk_errors, write_atomically
from shared.errors import UnsupportedModel

_NAMED = {"model", "revision", "gguf_file"}


def pinned_snapshot(model: HubModel, policy: SourcePolicy, workspace: Path) -> Snapshot:
    """Return the snapshot that the workspace is pinned to; without one, the hub's, and pin the workspace to it.

    Raises:
        DiskError: The workspace cannot be written.
        UnsupportedModel, NotFound, Unauthorized, NetworkError: See ``hub.find_snapshot``.
    """
    path, named = workspace / PINNED_COMMIT, {"model": model.id, "revision": model.revision}
    if model.gguf_file is not None:
        named["gguf_file"] = model.gguf_file
    if (pin := _read(path)) is not None and named == {key: pin[key] for key in pin.keys() & _NAMED}:
        return Snapshot(pin["commit"], pin["sizes"])
    snapshot = find_snapshot(model, policy)
    pin = named | {"commit": snapshot.commit, "sizes": snapshot.sizes}
    with disk_errors(workspace):
        workspace.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(pin).encode())
    return snapshot


@contextmanager
def unpinned_if_unsupported(workspace: Path) -> Iterator[None]:
    """Let the next attempt ask the hub again where what the workspace is pinned to turns out not to be served."""
    try:
        yield
    except UnsupportedModel:
        (workspace / PINNED_COMMIT).unlink(missing_ok=True)
        raise


def _read(path: Path) -> dict[str, Any] | None:
    with suppress(FileNotFoundError, ValueError):
        pin = json.loads(path.read_bytes())
        return pin if isinstance(pin, dict) else None
    return None
