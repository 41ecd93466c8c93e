"""The best codebooks of many rows at once: weighted k-means in one dimension, by dynamic programming on histograms.

    min Σ_k Σ_{i in interval k} p_i (x_i − mean_k)²   =   Σ p x²  −  max Σ_k (ΔS_k)² / ΔM_k

In one dimension the clusters of an optimum are intervals. Three steps, each over all rows:

1. *Coarse.* 128 candidate edges, denser where an optimal codebook is: its density goes as the cube root of the
   weights' (Panter and Dite). The best K intervals between candidates, none of which spans more than 2·128/K of them:
   ``best_k(i) = max_d best_{k−1}(i − d) + gain(i − d, i)``.
2. *Fine.* The same programme over 9 edges around each boundary, a quarter of a candidate's distance apart.
3. *Lloyd.* Boundaries move to the edges nearest to the middles of neighbouring means until none moves.

Codebooks of more than 16 values skip the programmes: they start from the density's quantiles. Rows stand last in the
programmes' tensors, so that every operation runs along memory.
Against the exact programme over every position the error is less than 0.05 % above the optimum (see the tests).
Costs about 60 µs per row on one CPU core at K = 16, whatever the row's length.
References: Panter and Dite 1951; Wang and Song 2011 (the exact programme).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from cloud_service.pipeline.quantizers.row_histograms import RowHistograms

_CANDIDATES = 128
_LARGEST_PROGRAMME = 16
_WIDEST_INTERVAL = 2
_FINE_STEPS = 4
_LLOYD_ITERATIONS = 100
_BINS_PER_GROUP = 32
_EVEN_SHARE = 0.25
_RESOLUTION = float(1 << 40)


def best_means(row: RowHistograms, size: int) -> Tensor:
    """Return ``size`` increasing means of the rows' best intervals, in units of the weights: float64 (rows, size)."""
    boundaries = _programmed(row, size) if size <= _LARGEST_PROGRAMME else _candidates(row, size)
    return _means(row, _lloyd(row, boundaries)) * row.unit + row.centre


def _candidates(row: RowHistograms, count: int) -> Tensor:
    """Return ``count`` + 1 edges per row, from 0 to the last, that cut a row's density of codes into equal parts."""
    share = (_code_density(row) * _RESOLUTION).round_()
    reached = share.cumsum(dim=1, dtype=torch.float64)
    part = (reached * (count / reached[:, -1:])).to(torch.int64).clamp_max_(count - 1)
    edges_in_part = torch.zeros(len(part), count, dtype=torch.int64, device=part.device)
    edges_in_part.scatter_add_(1, part, torch.ones((), dtype=torch.int64, device=part.device).expand_as(part))
    return pad(edges_in_part.cumsum(dim=1), (1, 0))


def _code_density(row: RowHistograms) -> Tensor:
    """Return how many of the codes each bin should get, float32 (rows, bins), up to a factor.

    The cube root of mass per value, over groups of bins because single bins are noisy; a quarter as much spread
    evenly over all groups, for outliers, and over all bins with weights, for rows with few of them.
    """
    mass = row.mass[:, ::_BINS_PER_GROUP].diff(dim=1).float()
    optimal = (mass * row.edge_values(_BINS_PER_GROUP).diff(dim=1) ** 2) ** (1 / 3)
    optimal /= optimal.sum(dim=1, keepdim=True).clamp_min_(1)
    occupied = (row.mass[:, 1:] > row.mass[:, :-1]).float()
    density = occupied * (_EVEN_SHARE / occupied.sum(dim=1, keepdim=True).clamp_min_(1))
    groups = density.view(*optimal.shape, _BINS_PER_GROUP)
    groups += ((optimal + _EVEN_SHARE / optimal.shape[1]) / _BINS_PER_GROUP)[:, :, None]
    return density


def _programmed(row: RowHistograms, size: int) -> Tensor:
    """Return the edges (rows, size + 1) that the coarse and then the fine programme find."""
    candidates = _candidates(row, _CANDIDATES).T.contiguous()
    chosen = _coarse(row, candidates, size)
    inner = chosen[1:-1]
    around = [candidates.gather(0, (inner + side).clamp_(0, _CANDIDATES)) for side in (-1, 1)]
    step = ((around[1] - around[0]) // (2 * _FINE_STEPS)).clamp_min_(1)
    return _fine(row, candidates.gather(0, chosen), step).T.contiguous()


def _coarse(row: RowHistograms, candidates: Tensor, size: int) -> Tensor:
    """Return which candidates bound the best ``size`` intervals, (size + 1, rows).

    Args:
        row: The histograms.
        candidates: Edges (candidates + 1, rows).
        size: How many intervals; an interval may be empty.
    """
    last, rows = candidates.shape[0] - 1, candidates.shape[1]
    widest = min(last, _WIDEST_INTERVAL * last // size)
    mass, moment = _sums_rows_last(row, candidates)
    gains = torch.zeros(widest + 1, last + 1, rows, device=mass.device)  # gains[widest − d, i] of interval (i − d, i)
    for d in range(1, widest + 1):
        gains[widest - d, d:] = _gain(mass[d:] - mass[:-d], moment[d:] - moment[:-d])
    best = [_padded(_gain(mass, moment), widest)]
    sums = torch.empty_like(gains)
    for _ in range(size - 1):
        before = best[-1].as_strided(gains.shape, (rows, rows, 1))  # before[widest − d, i] = best[i − d]
        best.append(_padded(torch.add(before, gains, out=sums).amax(dim=0), widest))
    at = torch.full((1, rows), last, device=mass.device)
    path = [at]
    back = torch.arange(widest + 1, device=mass.device)[:, None]
    for layer in best[-2::-1]:
        into = gains.gather(1, at.expand(widest + 1, 1, rows))[:, 0]
        at = at - widest + (layer.gather(0, at + back) + into).max(dim=0, keepdim=True).indices
        path.append(at)
    path.append(torch.zeros_like(at))
    return torch.cat(path[::-1])


def _fine(row: RowHistograms, boundaries: Tensor, step: Tensor) -> Tensor:
    """Return better boundaries, (size + 1, rows), each of them at most 4 steps away from the given one.

    Args:
        row: The histograms.
        boundaries: Edges (size + 1, rows).
        step: Edges per step for each boundary but the first and the last, (size − 1, rows).
    """
    offsets = torch.arange(-_FINE_STEPS, _FINE_STEPS + 1, device=step.device)[:, None]
    edges = (boundaries[1:-1, None] + offsets * step[:, None]).clamp_(0, row.bins)
    mass, moment = (each.view(edges.shape) for each in _sums_rows_last(row, edges.flatten(0, 1)))
    best, gains = [_gain(mass[0], moment[0])], []
    for k in range(1, len(edges)):
        inside = mass[k] - mass[k - 1][:, None]
        gains.append(_gain(inside, moment[k] - moment[k - 1][:, None]).masked_fill_(inside < 0, -torch.inf))
        best.append((best[-1][:, None] + gains[-1]).amax(dim=0))
    rest = _gain(row.mass[:, -1] - mass[-1], row.moment[:, -1] - moment[-1])
    at = (best.pop() + rest).max(dim=0, keepdim=True).indices
    path = [at]
    while best:
        into = gains.pop().gather(1, at.expand(len(offsets), *at.shape))[:, 0]
        at = (best.pop() + into).max(dim=0, keepdim=True).indices
        path.append(at)
    inner = edges.gather(1, torch.stack(path[::-1]))[:, 0]
    return torch.cat([boundaries[:1], inner, boundaries[-1:]])


def _sums_rows_last(row: RowHistograms, edges: Tensor) -> tuple[Tensor, Tensor]:
    mass, moment = row.sums_below(edges.T.contiguous())
    return mass.T.contiguous(), moment.T.contiguous()


def _padded(layer: Tensor, count: int) -> Tensor:
    """Return the layer after ``count`` places that no interval may start from."""
    return pad(layer, (0, 0, count, 0), value=-torch.inf)


def _gain(mass: Tensor, moment: Tensor) -> Tensor:
    """Return what intervals keep of Σ p x²: moment² / mass, float32; differences of integers lose nothing."""
    squared = moment.to(torch.float32)
    return squared.mul_(squared).div_(mass.to(torch.float32).clamp_min_(1))


def _lloyd(row: RowHistograms, boundaries: Tensor) -> Tensor:
    """Move the boundaries, edges (rows, size + 1), until they are stationary."""
    for _ in range(_LLOYD_ITERATIONS):
        means = _means(row, boundaries)
        inner = row.nearest_edges((means[:, 1:] + means[:, :-1]) / 2)
        moved = torch.cat([boundaries[:, :1], inner, boundaries[:, -1:]], dim=1)
        if torch.equal(moved, boundaries):
            break
        boundaries = moved
    return boundaries


def _means(row: RowHistograms, boundaries: Tensor) -> Tensor:
    """Return the intervals' means, in units of the row's largest: float64; an empty interval repeats the one before."""
    mass, moment = (each.diff(dim=1).double() for each in row.sums_below(boundaries))
    means = torch.where(mass > 0, moment / mass.clamp_min(1), -1)
    return torch.cummax(means, dim=1).values
