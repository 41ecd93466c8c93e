"""Many rows of weights, each summed up as a histogram from which the cost of any interval of values follows.

    M(b) = Σ_{i below edge b} p_i        S(b) = Σ_{i below edge b} p_i x_i        x = w − centre of its row

Symbols: p importance · w weight · x its distance from the centre, at most ``unit`` in size · b one of the edges.
Weights between edges a and b have the mean ΔS / ΔM, and replacing them by it keeps (ΔS)² / ΔM of Σ p x²: no weight is
looked at twice, and no row is sorted, which would cost several times as much as all else. Edges are even in

    v(x) = x / (|x| + s)        s = 3 · mean |x|

so that they are close where weights are many (0.004 of a standard deviation apart at 1,024 bins) and still reach the
farthest outlier. p and p·x are rounded to integers, 2^30 for a whole row: their sums are exact, hence the same in any
order, on any number of threads and on any device. Costs about 8 ns per weight on one CPU core.
Knows nothing about codebooks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_WHOLE_ROW = float(1 << 30)
_SOFTNESS = 3.0
_TINY = 1e-30
_SMALLEST_TOTAL = 1e-29
"""2^30 over this is still finite in float32, so that a row of no importance gives zeros and not NaN."""
_SERIAL_SUM = 1 << 15
"""Torch shares the sum of one longer row out to its threads, and the result then depends on how many there are."""

_BLOCK_ELEMENTS_PER_THREAD = 1 << 16
_CUDA_BLOCK_ELEMENTS = 1 << 23


@dataclass(frozen=True, slots=True)
class RowHistograms:
    """Prefix sums over the bins of each row; edge 0 lies below, edge ``bins`` above all weights that count.

    Attributes:
        mass: M, int32 (rows, bins + 1); 2^30 is the row's whole importance.
        moment: S, int32 (rows, bins + 1), in units of ``unit``.
        unit: Largest |x|, float32 (rows, 1).
        centre: Mean of the weights that count, float32 (rows, 1).
        spread: s, float32 (rows, 1).
        lowest: v of the smallest x, float32 (rows, 1).
        density: Bins per unit of v, float32 (rows, 1).
    """

    mass: Tensor
    moment: Tensor
    unit: Tensor
    centre: Tensor
    spread: Tensor
    lowest: Tensor
    density: Tensor

    @classmethod
    def of(cls, weight: Tensor, importance: Tensor, bins: int) -> RowHistograms:
        """Return the histograms of float32 rows; weights of no importance have no influence."""
        mass = torch.zeros(len(weight), bins + 1, dtype=torch.int32, device=weight.device)
        moment = torch.zeros_like(mass)
        rows = block_rows(weight)
        blocks = zip(*(torch.split(each, rows) for each in (weight, importance, mass, moment)), strict=True)
        scales = torch.cat([_count(w, p, in_bin[:, 1:], moved[:, 1:]) for w, p, in_bin, moved in blocks])
        return cls(mass.cumsum_(dim=1), moment.cumsum_(dim=1), *torch.split(scales, 1, dim=1))

    @property
    def bins(self) -> int:
        """How many bins a row has."""
        return self.mass.shape[1] - 1

    def sums_below(self, edges: Tensor) -> tuple[Tensor, Tensor]:
        """Return M and S at integer edges (rows, any number)."""
        return self.mass.gather(1, edges), self.moment.gather(1, edges)

    def edge_values(self, every: int) -> Tensor:
        """Return x / ``spread`` at edges 0, ``every``, 2·``every``, …, float32 (rows, bins / every + 1)."""
        place = self.lowest + torch.arange(0, self.bins + 1, every, device=self.mass.device) / self.density
        return place / (1 - place.abs()).clamp_min_(1e-6)


def block_rows(weight: Tensor) -> int:
    """Return how many rows to work on at a time: on a CPU, as many as stay in its caches."""
    on_cpu = weight.device.type == "cpu"
    elements = torch.get_num_threads() * _BLOCK_ELEMENTS_PER_THREAD if on_cpu else _CUDA_BLOCK_ELEMENTS
    return max(1, elements // max(1, weight.shape[1]))


def _count(weight: Tensor, importance: Tensor, mass: Tensor, moment: Tensor) -> Tensor:
    """Add the rows to the zeroed bins ``mass`` and ``moment``; return unit, centre, spread, lowest and density."""
    counts = importance.sign()  # a product with it is several times faster than a choice by a boolean
    number = _row_sums(counts).clamp_min_(1)
    x = weight * counts
    centre = _row_sums(x) / number
    x.sub_(centre).mul_(counts)
    low, high = x.amin(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)
    unit = torch.maximum(-low, high).clamp_min_(_TINY)
    size = x.abs()
    spread = (_SOFTNESS * _row_sums(size) / number).clamp_min_(_TINY)
    lowest, highest = low / (low.abs() + spread), high / (high.abs() + spread)
    density = (mass.shape[1] - 0.01) / (highest - lowest).clamp_min_(_TINY)  # 0.01: rounding stays inside
    place = torch.div(x, size.add_(spread), out=size).sub_(lowest).mul_(density).to(torch.int64)
    share = (importance * (_WHOLE_ROW / _row_sums(importance).clamp_min_(_SMALLEST_TOTAL))).round_()
    mass.scatter_add_(1, place, share.to(torch.int32))
    moment.scatter_add_(1, place, share.mul_(x).mul_(1 / unit).round_().to(torch.int32))
    return torch.cat([unit, centre, spread, lowest, density], dim=1)


def _row_sums(values: Tensor) -> Tensor:
    """Return the sum of every row, (rows, 1), in an order that does not depend on threads or other rows."""
    sums = [part.sum(dim=1, keepdim=True) for part in torch.split(values, _SERIAL_SUM, dim=1)]
    return sums[0] if len(sums) == 1 else torch.stack(sums).sum(dim=0)
