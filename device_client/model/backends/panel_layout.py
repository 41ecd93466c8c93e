"""Panels, tiles and passes of the matrix unit in numbers, as in ``native/kernels``; needs no torch."""

from __future__ import annotations

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


def is_in_whole_blocks(shape: tuple[int, int]) -> bool:
    """Return whether a weight (out_features, in_features) consists of whole blocks, and not too many."""
    rows, columns = shape
    return rows % PANEL_ROWS == 0 and columns % PANEL_COLUMNS == 0 and columns <= MOST_COLUMNS


def placement_lists(shape: tuple[int, int]) -> int:
    """Return how many lists a weight's sensitive values are sorted into: one for each slice of columns and panel."""
    rows, columns = shape
    return -(-columns // SLICE_COLUMNS) * (rows // PANEL_ROWS)
