"""Quantises column by column, letting the columns still to come make up for each column's error (GPTQ).

    min over Q   tr( (W − Q) H (W − Q)ᵀ ) = E ‖(W − Q) x‖²                     Equation 13, with H = E[x xᵀ]
    H⁻¹ = Uᵀ U,  U upper triangular
    e = (w_j − q_j) / U_jj        w_k ← w_k − e · U_jk   for every later column k

Symbols: w_j column j of W as it stands (rows) · q_j what it decodes to · H ``second_moment`` (columns, columns), to
whose diagonal 1 % of its mean is added, as GPTQ does: an input that is always 0 then neither passes on nor takes up
any error. A *pinned* weight is published as it was in W, in 16 bits; what it was moved by is an error like another.
Columns are taken in the order of falling H_jj where the coder allows it: large errors are then made up for by many.
Updates beyond a stretch of 128 columns are put off to its end, where they are one matrix product.

A coder turns a column into codes: ``GridCoder`` by a grid that is fixed beforehand (a codebook per row); ``GroupCoder``
by a scale and bias that it finds for each group when the group is reached, from the weights as they stand then. Where
asked to, grid and codes are then fitted to each other again (``refit``).
Costs rows · columns² multiplications and 2/3 · columns³ for U, and as memory H two and a half times more (1.7 GB in all
where there are 11,008 columns) and the weight three times; the loop takes some ten small operations per column. Runs
on any device. Knows nothing about activations or Fisher values.
References: arXiv 2210.17323 (GPTQ), Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from cloud_service.pipeline.quantizers.grids import Grid, GroupGrid
from cloud_service.pipeline.quantizers.refit import refit
from cloud_service.pipeline.quantizers.rtn import group_codes
from shared.errors import UnsupportedModel
from shared.quantization.codec import QuantizedTensor

DAMPING = 0.01
"""Share of the mean of H's diagonal that is added to the diagonal."""

_STRETCH = 128
_STRONGEST_DAMPING = 1.0

GridSearch = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""Groups (rows, groups, group_size), their importance and the bits → scale and bias (rows, groups)."""


class ColumnCoder(Protocol):
    """Quantises one column at a time."""

    @property
    def group_size(self) -> int | None:
        """Columns that ``reach`` is told about together, in order; None where columns may come in any order."""

    def reach(self, start: int, weight: Tensor) -> None:
        """Prepare for the group that begins at column ``start``, whose weights stand at ``weight`` (rows, columns)."""

    def encode(self, column: int, targets: Tensor, /) -> tuple[Tensor, Tensor]:
        """Return codes and decoded values of the column of that index, both (rows)."""

    def found(self) -> Grid:
        """Return what the codes of all columns stand for."""


@dataclass(frozen=True, slots=True)
class GridCoder:
    """The nearest value of a grid that is fixed beforehand.

    Attributes:
        grid: The grid.
    """

    grid: Grid
    group_size: None = None

    def reach(self, start: int, weight: Tensor) -> None:
        """Do nothing: the grid is fixed."""

    def encode(self, column: int, targets: Tensor, /) -> tuple[Tensor, Tensor]:
        """Return codes and decoded values of the column of that index, both (rows)."""
        return self.grid.encode(column, targets)

    def found(self) -> Grid:
        """Return the grid."""
        return self.grid


@dataclass(slots=True)
class GroupCoder:
    """Uniform codes by a scale and bias per group, found when the group is reached.

    Attributes:
        importance: float32 (rows, columns), 0 at pinned weights: they have no influence on scale and bias.
        bits: Bits per code.
        group_size: Columns per group.
        search: Finds scale and bias.
        grids: What was found so far: scale and bias (rows, 1) of each group.
    """

    importance: Tensor
    bits: int
    group_size: int
    search: GridSearch
    grids: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def reach(self, start: int, weight: Tensor) -> None:
        """Find scale and bias of the group that begins at column ``start``."""
        importance = self.importance[:, start : start + self.group_size]
        self.grids.append(self.search(weight[:, None], importance[:, None], self.bits))

    def encode(self, column: int, targets: Tensor, /) -> tuple[Tensor, Tensor]:
        """Return codes and decoded values of the column of that index, both (rows)."""
        scale, bias = self.grids[column // self.group_size]
        codes = group_codes(targets[:, None, None], scale, bias, self.bits)[:, :, 0]
        return codes[:, 0], (codes * scale + bias)[:, 0]

    def found(self) -> Grid:
        """Return the scales and biases of all groups."""
        scale, bias = (torch.cat(parts, dim=1) for parts in zip(*self.grids, strict=True))
        return GroupGrid(scale, bias, self.bits, self.group_size)


def quantize_compensated(
    weight: Tensor, second_moment: Tensor, is_pinned: Tensor, coder: ColumnCoder, *, refits: bool = False
) -> QuantizedTensor:
    """Return the weight quantised by ``coder``, with error compensation; no argument but the coder is changed.

    Args:
        weight: float32 (rows, columns).
        second_moment: H, float32 (columns, columns), on the same device.
        is_pinned: bool, shaped like the weight; what the codes say there does not matter.
        coder: A fresh coder.
        refits: Whether the coder's grid and the codes are fitted to each other again.

    Raises:
        UnsupportedModel: H is not finite, or not positive semi-definite.
    """
    columns = weight.shape[1]
    order = torch.arange(columns, device=weight.device)
    if coder.group_size is None:
        order = second_moment.diagonal().argsort(descending=True, stable=True)
    upper = inverse_factor(second_moment, order)
    codes = torch.empty(columns, len(weight), dtype=torch.uint8, device=weight.device)
    codes[order] = _compensate(weight.T[order], is_pinned.T[order], upper, coder, order.tolist())
    grid = coder.found()
    if not refits:
        return grid.assemble(codes.T.contiguous())
    del upper
    grid, fitted = refit(weight, damped(second_moment), is_pinned, grid, codes.T.to(torch.int64))
    return grid.assemble(fitted)


def damped(second_moment: Tensor, damping: float = DAMPING) -> Tensor:
    """Return a copy of H whose diagonal is raised by a share of its mean; by 1 where H is 0 throughout."""
    mean = second_moment.diagonal().mean()
    raised = second_moment.clone()
    raised.diagonal().add_(damping * mean if mean > 0 else 1.0)
    return raised


def inverse_factor(second_moment: Tensor, order: Tensor | None = None) -> Tensor:
    """Return U, upper triangular, with (H + damping)⁻¹ = Uᵀ U, rows and columns of H taken in ``order``.

    Where float32 does not carry the factorisation, the damping is raised tenfold.

    Raises:
        UnsupportedModel: H is not finite, or not positive semi-definite.
    """
    mean = second_moment.diagonal().mean()
    # With rows and columns of H reversed, H = L Lᵀ; so U is L⁻¹ with rows and columns reversed.
    last_first = (torch.arange(len(second_moment), device=mean.device) if order is None else order).flip(0)
    damping = DAMPING
    while torch.isfinite(mean) and damping <= _STRONGEST_DAMPING:
        lower = second_moment[last_first[:, None], last_first]
        lower.diagonal().add_(damping * mean if mean > 0 else 1.0)
        lower, failed = torch.linalg.cholesky_ex(lower)
        if not failed:
            inverse = torch.eye(len(lower), device=lower.device).mT  # column-major, so that it is solved in place
            torch.linalg.solve_triangular(lower, inverse, upper=False, out=inverse)
            del lower
            return inverse.flip(0, 1)
        damping *= 10
    raise UnsupportedModel(
        "the second moments of a linear layer's inputs are not finite, or not positive semi-definite",
        needed="finite activations on the calibration text",
        next_step="choose quantizer.compensation none",
        param="quantizer.compensation",
    )


def _compensate(weight: Tensor, is_pinned: Tensor, upper: Tensor, coder: ColumnCoder, order: list[int]) -> Tensor:
    """Return the codes of a transposed weight, (columns, rows), its columns in ``order``. Changes ``weight``."""
    original = weight.clone()
    codes = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
    columns, stretch = len(weight), _stretch_of(coder.group_size)
    for start in range(0, columns, stretch):
        stop = min(start + stretch, columns)
        errors = torch.empty_like(weight[start:stop])
        for column in range(start, stop):
            if coder.group_size is not None and column % coder.group_size == 0:
                coder.reach(column, weight[column : column + coder.group_size].T)
            codes[column], decoded = coder.encode(order[column], weight[column])
            published = torch.where(is_pinned[column], original[column], decoded)
            errors[column - start] = (weight[column] - published) / upper[column, column]
            weight[column:stop].addr_(upper[column, column:stop], errors[column - start], alpha=-1)
        weight[stop:].addmm_(upper[start:stop, stop:].T, errors, alpha=-1)
    return codes


def _stretch_of(group_size: int | None) -> int:
    """Return how many columns are updated at once; no group that is shorter than it crosses its end."""
    if group_size is None or group_size % _STRETCH == 0:
        return _STRETCH
    return group_size * max(1, _STRETCH // group_size)
