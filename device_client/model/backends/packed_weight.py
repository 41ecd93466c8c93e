"""One weight as a backend keeps it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from device_client.model.backends.panel_layout import PANEL_ROWS
from shared.quantization.codec import QuantizedTensor


class PointsProduct(Protocol):
    """Multiplies at several points without decoding a weight as a whole; a point's bits depend on that point alone."""

    def __call__(self, stacked: Tensor, weight: PackedWeight, values: Sequence[Tensor], bias: Tensor | None) -> Tensor:
        """Return x_p W(θ_p)ᵀ + b of every point, compute dtype (points, tokens, out_features).

        Args:
            stacked: Compute dtype (points, tokens, in_features).
            weight: The packed weight.
            values: Compute dtype (k,) each, the sensitive values at every point.
            bias: Compute dtype (out_features,), or None.
        """


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """One weight, or some rows of it, as a backend keeps it, on the compute device.

    Attributes:
        quantized: The dense part; in panels, its codes lie in an order that the codec does not know.
        indices: int64 or int32 (k,), flat positions of the sensitive values of the whole weight, ascending; k may be 0.
        row_starts: int32 (out_features + 1,): the values of row r are those from row_starts[r] to row_starts[r + 1].
        first_row: Where the rows begin in the whole weight.
        part_of: The whole weight, where these are not all of its rows.
        replaced: Compute dtype (k,), what the codes at their positions stand for; None where a backend looks it up.
        in_panels: Whether the codes lie otherwise than row by row; see ``native/kernels/panels.h``.
        at_points: The backend's product at several points, for any number of tokens, where it has one for this weight;
            some rows have none.
        described: What the backend's compiled kernels see of it, where it keeps that; some rows have none.
    """

    quantized: QuantizedTensor
    indices: Tensor
    row_starts: Tensor
    first_row: int = 0
    part_of: PackedWeight | None = None
    replaced: Tensor | None = None
    in_panels: bool = False
    at_points: PointsProduct | None = field(default=None, compare=False, repr=False)
    described: Any = field(default=None, compare=False, repr=False)

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)."""
        return self.quantized.shape

    @property
    def whole(self) -> PackedWeight:
        """The weight with all its rows."""
        return self.part_of or self

    @property
    def place(self) -> slice:
        """Which rows of the whole weight these are."""
        return slice(self.first_row, self.first_row + self.shape[0])

    def rows(self, start: int, stop: int) -> PackedWeight:
        """Return rows ``start`` to ``stop`` over the same tensors; they go with the values of the whole weight.

        Raises:
            ValueError: The codes lie in panels, and the rows are not whole ones.
        """
        if (start, stop) == (0, self.shape[0]):
            return self
        if self.in_panels and (start % PANEL_ROWS or stop % PANEL_ROWS):
            raise ValueError(f"rows {start} to {stop} are not whole panels of {PANEL_ROWS}")
        return PackedWeight(
            self.quantized.rows(start, stop),
            self.indices,
            self.row_starts[start : stop + 1],
            self.first_row + start,
            part_of=self.whole,
            replaced=self.replaced,
            in_panels=self.in_panels,
        )

    def own(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the positions that lie in these rows, counted from their beginning, and their values."""
        if self.part_of is None:
            return self.indices, values
        begin, end = int(self.row_starts[0]), int(self.row_starts[-1])
        return self.indices[begin:end] - self.first_row * self.shape[1], values[begin:end]


def without_values(quantized: QuantizedTensor) -> PackedWeight:
    """Return a weight that has no sensitive values, as any backend takes it: its codes row by row."""
    device = quantized.codes.device
    none = torch.empty(0, dtype=torch.int32, device=device)
    return PackedWeight(quantized, none, torch.zeros(quantized.shape[0] + 1, dtype=torch.int32, device=device))


def first_of_each_row(indices: Tensor, rows: int, columns: int) -> Tensor:
    """Return int32 (rows + 1,): where each row's sensitive values begin among the ascending flat ``indices``."""
    borders = torch.arange(rows + 1, device=indices.device, dtype=torch.int64) * columns
    return torch.searchsorted(indices, borders).to(torch.int32)
