"""What each backend will keep, asked of it from shapes alone: memory is planned without torch.

Every backend states its own bytes in its package (``ReferencePlan``, ``NativePlan``, ``AmxPlan``, ``TritonPlan``). A
workspace has room for the largest weight: one of the decoder blocks', or a tile of the head where that is quantised.

Measuring a backend at load holds one random weight of the largest shape and less than what the model will: it happens
before the model's own weights are there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from device_client.model.backends.names import CANDIDATES
from device_client.model.backends.native import NativePlan
from device_client.model.backends.native.amx import AmxPlan, has_matrix_unit
from device_client.model.backends.reference import ReferencePlan
from device_client.model.backends.triton import TritonPlan
from shared.bundle.config import BundleConfig, QuantizedEntry
from shared.errors import ResourceError

HEAD_TILE_ROWS = {"cpu": 2048, "cuda": 8192}
"""Rows of a quantised head that are decoded at once: what a CPU's cache holds; a GPU prefers fewer, larger products."""


def likeliest_backend(name: str, device_type: str) -> str:
    """Return the backend of that name, or for ``auto`` the one that is probably chosen.

    Raises:
        ResourceError: There is none of that name on the device.
    """
    known = CANDIDATES[device_type]
    if name == "auto":
        return known[0]
    if name not in known:
        raise ResourceError(
            f"backend {name!r} on {device_type}",
            needed=f"auto or one of {', '.join(known)}",
            next_step="--backend auto",
        )
    return name


def decoded_shapes(config: BundleConfig, device_type: str) -> list[tuple[int, int]]:
    """Return the shapes (out_features, in_features) that are decoded at once: whole weights, and tiles of the head."""
    rows_at_once = HEAD_TILE_ROWS[device_type]
    tiles = [
        (min(rows, rows_at_once), columns) for rows, columns in (entry.shape for entry in config.embedding_tensors)
    ]
    return [entry.shape for entry in config.block_tensors] + tiles


class PlannedBackend(Protocol):
    """What a backend will keep for a device and a compute dtype."""

    def workspace_bytes(self, shapes: Sequence[tuple[int, int]]) -> int:
        """Return the bytes of all its buffers.

        Args:
            shapes: (out_features, in_features) of all that is decoded at once.
        """

    def position_bytes(self, entry: QuantizedEntry) -> int:
        """Return the bytes of what a weight keeps beside its stored parts and its ``row_start_bytes``."""

    def is_decoded(self, entry: QuantizedEntry, /) -> bool:
        """Return whether products of many tokens decode a weight, so that keeping it decoded saves work."""


def planned_backend(name: str, device_type: str, value_bytes: int) -> PlannedBackend:
    """Return the plan of a backend, for the way that ``choose_backend`` takes on this machine.

    Args:
        name: ``reference``, ``native`` or ``triton``.
        device_type: ``cpu`` or ``cuda``.
        value_bytes: Bytes of one value in the compute dtype; 2 on a CPU counts as bfloat16.
    """
    if name == "reference":
        return ReferencePlan(device_type, value_bytes)
    if name == "triton":
        return TritonPlan(value_bytes)
    return AmxPlan(value_bytes) if value_bytes == 2 and has_matrix_unit() else NativePlan(value_bytes)


def row_start_bytes(entry: QuantizedEntry) -> int:
    """Return the bytes of where each row's sensitive values begin, which a weight without any has too."""
    return (entry.shape[0] + 1) * 4
