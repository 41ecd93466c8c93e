"""Weights for the matrix unit of a CPU (AMX): which fit it, and what they will keep; needs no torch.

Panels, slices and passes are numbers of the kernels too: see ``native/kernels/panels.h`` and ``at_points.h``.
"""

from __future__ import annotations

from dataclasses import dataclass

from device_client.model.backends.native import NativePlan
from device_client.model.backends.native.cpu import cpu_description
from shared.bundle.config import QuantizedEntry

PANEL_ROWS = 16
"""Rows of a panel."""

PANEL_COLUMNS = 128
"""Columns of a block of a panel."""

MOST_COLUMNS = 1 << 16
"""Columns of a weight in panels."""

SLICE_COLUMNS = 256
"""Columns whose tiles are made at once."""

PASS_TOKENS = 512
"""Tokens whose inputs are packed at once."""

_NEEDED_FLAGS = frozenset({"amx_bf16", "amx_int8", "avx512_bf16", "avx512vbmi"})


def has_matrix_unit() -> bool:
    """Return whether the system names a unit for products of matrices, and what the kernels need beside it."""
    return set(cpu_description("flags").split()) >= _NEEDED_FLAGS


def fits_panels(shape: tuple[int, int], bits: int, group_size: int | None) -> bool:
    """Return whether a matrix unit can multiply from the codes of a weight: whole blocks, each of one table a row.

    Args:
        shape: (out_features, in_features).
        bits: Of a code.
        group_size: Columns per group of scales; None where there are none.
    """
    rows, columns = shape
    is_whole = rows % PANEL_ROWS == 0 and columns % PANEL_COLUMNS == 0 and columns <= MOST_COLUMNS
    return bits == 4 and is_whole and (group_size or PANEL_COLUMNS) % PANEL_COLUMNS == 0


def placement_lists(shape: tuple[int, int]) -> int:
    """Return how many lists a weight's sensitive values are sorted into: one for each slice of columns and panel."""
    rows, columns = shape
    return -(-columns // SLICE_COLUMNS) * (rows // PANEL_ROWS)


@dataclass(frozen=True, slots=True)
class AmxPlan(NativePlan):
    """What the backend will keep with a matrix unit; see ``PlannedBackend``."""

    def position_bytes(self, entry: QuantizedEntry) -> int:
        """Return the bytes besides of where values go in tiles, two numbers each, and of each row's largest value."""
        kept = NativePlan.position_bytes(self, entry)
        if self.is_decoded(entry):
            return kept
        return kept + (placement_lists(entry.shape) + 1 + 2 * entry.sensitive_count + entry.shape[0]) * 4

    def is_decoded(self, entry: QuantizedEntry, /) -> bool:
        """Return whether the weight stays as it is without a matrix unit."""
        return not fits_panels(entry.shape, entry.bits, entry.group_size)
