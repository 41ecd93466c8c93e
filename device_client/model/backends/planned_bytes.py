"""What each backend will keep, from shapes alone: memory is planned without torch.

    reference    the largest weight, and one tile of rows; indices of 8 bytes, and where each row's begin
    native       the largest weight; indices of 4 bytes, where each row's begin, and what the values replace; on a
                 CPU with a matrix unit, in 16 bits, also where the values go in tiles, and each row's largest
    triton       the largest weight; indices of 4 bytes, and where each row's begin

The largest weight is one of the decoder blocks', or a tile of the head where that is quantised.

Measuring a backend at load holds one random weight of the largest shape and less than what the model will: it happens
before the model's own weights are there.
"""

from __future__ import annotations

from collections.abc import Sequence

from device_client.model.backends import reference_tiles
from device_client.model.backends.names import CANDIDATES
from device_client.model.backends.native.cpu import has_matrix_unit
from device_client.model.backends.panel_layout import PANEL_COLUMNS, is_in_whole_blocks, placement_lists
from shared.bundle.manifest import BundleConfig, QuantizedEntry
from shared.errors import ResourceError
from shared.sensitivity_mask import INDEX_LIMIT

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


def workspace_bytes(backend: str, shapes: Sequence[tuple[int, int]], device_type: str, value_bytes: int) -> int:
    """Return the bytes of all its buffers.

    Args:
        backend: ``reference``, ``native`` or ``triton``.
        shapes: (out_features, in_features) of all that is decoded at once.
        device_type: ``cpu`` or ``cuda``.
        value_bytes: Bytes of one value in the compute dtype.
    """
    if backend == "reference":
        return reference_tiles.workspace_bytes(shapes, device_type, value_bytes)
    return max(rows * columns for rows, columns in shapes) * value_bytes


def position_bytes(backend: str, entry: QuantizedEntry, value_bytes: int) -> int:
    """Return the bytes of where one weight's sensitive values stand, of what they replace, and of what else is kept."""
    is_wide = backend == "reference" or (backend == "triton" and entry.element_count > INDEX_LIMIT)
    replaced = value_bytes if backend == "native" else 0
    is_placed = backend == "native" and value_bytes == 2 and has_matrix_unit() and _fits_panels(entry)
    placed = _placement_bytes(entry) if is_placed else 0
    return entry.sensitive_count * ((8 if is_wide else 4) + replaced) + row_start_bytes(entry) + placed


def row_start_bytes(entry: QuantizedEntry) -> int:
    """Return the bytes of where each row's sensitive values begin, which a weight without any has too."""
    return (entry.shape[0] + 1) * 4


def is_any_decoded(backend: str, entries: Sequence[QuantizedEntry], dtype_name: str | None) -> bool:
    """Return whether a pass probably decodes some weight as a whole, so that one that is kept decoded saves work.

    Args:
        backend: ``reference``, ``native`` or ``triton``.
        entries: The quantised weights.
        dtype_name: The compute dtype, or None for the device's own.
    """
    if backend != "native" or dtype_name != "bfloat16" or not has_matrix_unit():
        return True
    return not all(map(_fits_panels, entries))


def _placement_bytes(entry: QuantizedEntry) -> int:
    """Return the bytes of where values go in tiles, two numbers each and where lists begin, and each row's largest."""
    return (placement_lists(entry.shape) + 1 + 2 * entry.sensitive_count + entry.shape[0]) * 4


def _fits_panels(entry: QuantizedEntry) -> bool:
    """Return whether a matrix unit can multiply from the codes of a weight."""
    is_one_table = (entry.group_size or PANEL_COLUMNS) % PANEL_COLUMNS == 0
    return entry.bits == 4 and is_in_whole_blocks(entry.shape) and is_one_table
