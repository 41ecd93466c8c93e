"""The reference backend, in plain torch; and what it will keep, in numbers that need no torch.

Weights are decoded in tiles of rows. A tile's codes become indices of 8 bytes; at 4 bits two columns are looked up at
once where rows are long, in a table of 256 pairs per row of the tile.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from shared.bundle.config import QuantizedEntry

TILE_CODES = {"cpu": 1 << 19, "cuda": 1 << 22}
"""Codes per tile: 4 MiB of indices, for a CPU's cache; a GPU prefers fewer, larger launches."""

PAIRS_FROM_COLUMNS = 768
"""Shorter rows do not repay the making of their 256 pairs."""

PAIR_TABLE_VALUES = 512
"""Values of one row's table: 256 bytes of codes, two columns each."""


def has_pairs(bits: int, columns: int) -> bool:
    """Return whether two columns are looked up at once."""
    return bits == 4 and columns >= PAIRS_FROM_COLUMNS and columns % 2 == 0


def tile_codes(shapes: Iterable[tuple[int, int]], device_type: str) -> int:
    """Return the codes of one tile: a cache's worth, at least one row, at most the largest weight."""
    padded = [(rows, columns + columns % 2) for rows, columns in shapes]
    largest = max(rows * columns for rows, columns in padded)
    return max(min(TILE_CODES[device_type], largest), max(columns for _, columns in padded))


def pair_table_values(shapes: Iterable[tuple[int, int]], device_type: str) -> int:
    """Return the values of one tile's pair tables; 0 where no weight has rows long enough."""
    sizes = list(shapes)
    codes = tile_codes(sizes, device_type)
    table_rows = [min(rows, codes // columns) for rows, columns in sizes if has_pairs(4, columns)]
    return max(table_rows, default=0) * PAIR_TABLE_VALUES


def float_tile_values(codes: int, value_bytes: int) -> int:
    """Return the float32 values of one tile in which scales and biases are applied before rounding to 16 bits."""
    return codes if value_bytes != 4 else 0


@dataclass(frozen=True, slots=True)
class ReferencePlan:
    """What the backend will keep; see ``PlannedBackend``.

    Attributes:
        device_type: ``cpu`` or ``cuda``.
        value_bytes: Bytes of one value in the compute dtype.
    """

    device_type: str
    value_bytes: int

    def workspace_bytes(self, shapes: Sequence[tuple[int, int]]) -> int:
        """Return the bytes of the largest weight, and of one tile's indices, code words, pair tables and sums."""
        codes = tile_codes(shapes, self.device_type)
        largest = max(rows * columns for rows, columns in shapes)
        tables = pair_table_values(shapes, self.device_type)
        floats = float_tile_values(codes, self.value_bytes)
        return (largest + tables) * self.value_bytes + codes * 8 + -(-codes // 2) * 2 + floats * 4

    def position_bytes(self, entry: QuantizedEntry) -> int:
        """Return the bytes of indices of 8 bytes."""
        return entry.sensitive_count * 8

    def is_decoded(self, _: QuantizedEntry) -> bool:
        """Return True: every product decodes."""
        return True
