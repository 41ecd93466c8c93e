"""Fits a grid again to the codes that error compensation chose, and codes to the grid, in turns.

    min over values, codes   tr( (W − Q) H (W − Q)ᵀ )       Q = P(codes) · values, or W where the weight is pinned

1. *Values, codes fixed.* Every row is a least-squares problem in its own values (a codebook; scales and biases), solved
   for all rows at once by conjugate gradients that are scaled by the diagonal. A step costs one product with H and two
   passes over the weight.
2. *Codes, values fixed.* Column by column, the code nearest to where the row's objective is least with all other
   columns as they stand; (W − Q) H is kept up to date as columns change. No column's change raises the objective.

H is the damped one that the compensation itself used. Values are rounded to float16 after each fit, as they are stored.
Costs, per round, three products of the weight with H (five for a shared grid) and one loop over the columns; scratch is
ten times the weight. Runs on any device. Knows nothing about activations or Fisher values.
References: arXiv 2309.01885 (QuantEase: descent by columns).
"""

from __future__ import annotations

import torch
from torch import Tensor

from cloud_service.pipeline.quantizers.grids import Grid

ROUNDS = 1
"""Turns of values and codes; a second one lowers the objective by two hundredths more, for the same time again."""

STEPS = 1
"""Steps of conjugate gradients; three more lower the objective by less than half a hundredth more."""

_STRETCH = 64
_TINY = 1e-30


def refit(
    weight: Tensor, second_moment: Tensor, is_pinned: Tensor, grid: Grid, codes: Tensor, rounds: int = ROUNDS
) -> tuple[Grid, Tensor]:
    """Return a better grid and better codes, int64 (rows, columns); no argument is changed.

    Args:
        weight: float32 (rows, columns).
        second_moment: H with its damping, float32 (columns, columns).
        is_pinned: bool, shaped like the weight; codes there do not matter.
        grid: What the codes stand for.
        codes: int64 (rows, columns).
        rounds: Turns of values and codes.
    """
    for _ in range(rounds):
        for _ in range(grid.turns):
            grid, codes = grid.fitted(fitted_values(weight, second_moment, is_pinned, grid, codes), codes)
        codes = descended_codes(weight, second_moment, is_pinned, grid, codes)
    return grid, codes


def fitted_values(
    weight: Tensor, second_moment: Tensor, is_pinned: Tensor, grid: Grid, codes: Tensor, steps: int = STEPS
) -> Tensor:
    """Return values of less error for these codes, the least with enough steps; those of unused codes stay."""
    is_free = (~is_pinned).to(torch.float32)
    values = grid.values
    diagonal = grid.curvature(second_moment.diagonal() * is_free, codes).clamp_min_(_TINY)
    error = (weight - grid.expand(values, codes)) * is_free
    residual = grid.collect((error @ second_moment) * is_free, codes)
    scaled = residual / diagonal
    direction, length = scaled, _row_products(residual, scaled)
    for _ in range(steps):
        moved = grid.expand(direction, codes) * is_free
        image = grid.collect((moved @ second_moment) * is_free, codes)
        step = length / _row_products(direction, image).clamp_min_(_TINY)
        values = values + step * direction
        residual = residual - step * image
        scaled = residual / diagonal
        before, length = length, _row_products(residual, scaled)
        direction = scaled + length / before.clamp_min_(_TINY) * direction
    return values


def descended_codes(weight: Tensor, second_moment: Tensor, is_pinned: Tensor, grid: Grid, codes: Tensor) -> Tensor:
    """Return the codes after each column was chosen again, once, with the others as they stand."""
    wanted, pinned, chosen = (each.T.contiguous() for each in (weight, is_pinned, codes.to(torch.uint8)))
    published = torch.where(is_pinned, weight, grid.expand(grid.values, codes)).T.contiguous()
    slope = second_moment @ (wanted - published)
    curvature = second_moment.diagonal().tolist()
    for start in range(0, len(wanted), _STRETCH):
        stop = min(start + _STRETCH, len(wanted))
        changes = torch.empty_like(wanted[start:stop])
        for column in range(start, stop):
            target = torch.add(published[column], slope[column], alpha=1 / curvature[column])
            chosen[column], decoded = grid.encode(column, target)
            decoded = torch.where(pinned[column], wanted[column], decoded)
            change = torch.sub(published[column], decoded, out=changes[column - start])
            slope[column + 1 : stop].addr_(second_moment[column + 1 : stop, column], change)
        slope[stop:].addmm_(second_moment[stop:, start:stop], changes)
    return chosen.T.to(torch.int64)


def _row_products(one: Tensor, other: Tensor) -> Tensor:
    return (one * other).sum(dim=1, keepdim=True)
