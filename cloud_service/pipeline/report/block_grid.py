"""Figures per weight laid out as blocks × projections, which is how a transformer is read.

    model.layers.7.self_attn.q_proj.weight   →   row 7, column q

Knows nothing about what the figures mean.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

_NAME = re.compile(r"\.(?P<block>\d+)\.(?:\w+\.)*?(?P<projection>\w+)\.weight$")
_USUAL_ORDER = ("q", "k", "v", "o", "out", "gate", "up", "down", "fc1", "fc2")


@dataclass(frozen=True, slots=True)
class BlockGrid:
    """A table of figures.

    Attributes:
        projections: Names of the columns.
        rows: Block number and one figure per column; None where a block has no such projection.
    """

    projections: tuple[str, ...]
    rows: tuple[tuple[int, tuple[float | None, ...]], ...]

    @property
    def largest(self) -> float:
        """The largest figure; 0 in an empty grid."""
        return max((value for _, row in self.rows for value in row if value is not None), default=0.0)

    def shade(self, figure: float, *, is_logarithmic: bool = False) -> float:
        """Return how strong a figure's colour is, 0 … 1; the largest has 1."""
        if not self.largest:
            return 0.0
        return math.log1p(figure) / math.log1p(self.largest) if is_logarithmic else figure / self.largest

    def column(self, projection: str) -> tuple[float | None, ...]:
        """Return the figures of one projection, block by block."""
        position = self.projections.index(projection)
        return tuple(row[position] for _, row in self.rows)


def place_of(name: str) -> tuple[int, str] | None:
    """Return block and projection of a parameter name; None for a parameter outside the blocks."""
    match = _NAME.search(name)
    return (int(match["block"]), match["projection"].removesuffix("_proj")) if match else None


def short_name(name: str) -> str:
    """Return ``7 · q`` for block 7's ``q_proj``; a parameter outside the blocks keeps its name."""
    place = place_of(name)
    return f"{place[0]} · {place[1]}" if place else name


def block_grid(figures: Mapping[str, float]) -> BlockGrid:
    """Return the figures of the weights that lie in blocks, by parameter name."""
    cells = {place: value for name, value in figures.items() if (place := place_of(name)) is not None}
    found = dict.fromkeys(projection for _, projection in cells)
    columns = tuple(sorted(found, key=lambda name: _USUAL_ORDER.index(name) if name in _USUAL_ORDER else 99))
    blocks = sorted({block for block, _ in cells})
    return BlockGrid(columns, tuple((block, tuple(cells.get((block, name)) for name in columns)) for block in blocks))
