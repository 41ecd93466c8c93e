"""The best codebooks of many rows at once: weighted k-means in one dimension, by dynamic programming on histograms.

    min Σ_k Σ_{i in interval k} p_i (x_i − mean_k)²   =   Σ p x²  −  max Σ_k (ΔS_k)² / ΔM_k

In one dimension the clusters of an optimum are intervals. Two steps, each over all rows:

1. *Coarse.* 128 candidate edges, denser where an optimal codebook is: its density goes as the cube root of the
   weights' (Panter and Dite). The best K intervals between candidates, none of which spans more than 2·128/K of them:
   ``best_k(i) = max_d best_{k−1}(i − d) + gain(i − d, i)``.
2. *Fine.* The same programme over 9 edges around each boundary, a quarter of a candidate's distance apart.

Lloyd's iteration from there lowers the error by less than a hundred-thousandth at K = 16, so there is none.
Codebooks of more than 16 values skip the coarse programme: their candidates are their boundaries. Rows stand last
in the programmes' tensors, so that every operation runs along memory.
Against the exact programme over every position the error is about 0.03 % above the optimum (see the tests).
Costs about 35 µs per row on one CPU core at K = 16, whatever the row's length.
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
_BINS_PER_GROUP = 32
_RESOLUTION = float(1 << 23)
_TINY = 1e-30


def best_means(row: RowHistograms, size: int) -> Tensor:
    """Return ``size`` increasing means of the rows' best intervals, in units of the weights: float64 (rows, size)."""
    candidates = _candidates(row, max(_CANDIDATES, size)).T.contiguous()
    if size <= _LARGEST_PROGRAMME:
        chosen = _coarse(row, candidates, size)
    else:
        chosen = torch.arange(size + 1, device=candidates.device)[:, None].expand_as(candidates)
    boundaries = _fine(row, candidates.gather(0, chosen), _fine_step(candidates, chosen))
    return _means(row, boundaries.T.contiguous()) * row.unit + row.centre


def _candidates(row: RowHistograms, count: int) -> Tensor:
    """Return ``count`` + 1 edges per row, from 0 to the last, that cut a row's density of codes into equal parts."""
    reached = _code_density(row, count).mul_(_RESOLUTION).round_().cumsum_(dim=1)
    part = reached.mul_(count / reached[:, -1:]).to(torch.int64).clamp_max_(count - 1)
    edges = torch.zeros(len(part), count + 1, dtype=torch.int64, device=part.device)
    one = torch.ones((), dtype=torch.int64, device=part.device)
    edges[:, 1:].scatter_add_(1, part, one.expand_as(part))
    return _distinct(row, edges.cumsum_(dim=1))


def _distinct(row: RowHistograms, edges: Tensor) -> Tensor:
    """Return the edges without those that no weight separates from the one before; the last edge fills the row up."""
    is_new = row.mass.gather(1, edges).diff(dim=1) > 0
    place = pad(is_new.cumsum(dim=1), (1, 0))
    return torch.full_like(edges, row.bins).scatter_reduce_(1, place, edges, "amin")


def _code_density(row: RowHistograms, count: int) -> Tensor:
    """Return the share of ``count`` candidates that each bin should get, float32 (rows, bins), at most 1 in sum.

    60 % of them by the cube root of mass per value, over groups of bins because single bins are noisy, but at most 3
    for each bin with weights, or one outlier would draw them all; 15 % evenly, for the gaps beside outliers; 25 %
    evenly over the bins with weights, for rows with few of them.
    """
    mass = row.mass[:, ::_BINS_PER_GROUP].diff(dim=1).to(torch.float32)
    optimal = _shares((mass * row.edge_values(_BINS_PER_GROUP).diff(dim=1) ** 2) ** (1 / 3))
    occupied = torch.gt(row.mass[:, 1:], row.mass[:, :-1]).to(torch.float32)
    in_group = occupied.view(*optimal.shape, _BINS_PER_GROUP).sum(dim=2)
    optimal = _shares(torch.minimum(optimal, 3 * in_group / count))
    density = occupied.mul_(0.25 / in_group.sum(dim=1, keepdim=True).clamp_min_(1))
    per_bin = (0.6 * optimal + 0.15 / optimal.shape[1]) / _BINS_PER_GROUP
    density.view(*per_bin.shape, _BINS_PER_GROUP).add_(per_bin[:, :, None])
    return density


def _shares(amounts: Tensor) -> Tensor:
    return amounts / amounts.sum(dim=1, keepdim=True).clamp_min_(_TINY)


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
    gains = torch.zeros(widest + 1, last + 1, rows, device=mass.device)  # [widest − d, i]: of the interval (i − d, i]
    for d in range(1, widest + 1):
        gains[widest - d, d:] = _gain(mass[d:] - mass[:-d], moment[d:] - moment[:-d])
    best = torch.full((size, widest + last + 1, rows), -torch.inf, device=mass.device)
    best[0, widest:] = _gain(mass, moment)
    sums = torch.empty_like(gains)
    for k in range(1, size):
        torch.amax(torch.add(_ends(best[k - 1], widest), gains, out=sums), dim=0, out=best[k, widest:])
    at = (mass < mass[-1]).sum(dim=0, keepdim=True)  # the first candidate above all weights
    path = [at]
    back = torch.arange(widest + 1, device=mass.device)[:, None]
    for layer in best[:-1].unbind()[::-1]:
        into = gains.gather(1, at.expand(widest + 1, 1, rows))[:, 0]
        at = at - widest + (layer.gather(0, at + back) + into).max(dim=0, keepdim=True).indices
        path.append(at)
    path.append(torch.zeros_like(at))
    return torch.cat(path[::-1])


def _fine_step(candidates: Tensor, chosen: Tensor) -> Tensor:
    """Return a quarter of the candidates' distance around each inner boundary, at least 1: edges (size − 1, rows)."""
    inner, last = chosen[1:-1], len(candidates) - 1
    before, after = (candidates.gather(0, (inner + side).clamp(0, last)) for side in (-1, 1))
    return ((after - before) // (2 * _FINE_STEPS)).clamp_min_(1)


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
    inside = mass[1:, None] - mass[:-1, :, None]
    gains = _gain(inside, moment[1:, None] - moment[:-1, :, None]).masked_fill_(inside < 0, -torch.inf)
    best = [_gain(mass[0], moment[0])]
    for gain in gains:
        best.append((best[-1][:, None] + gain).amax(dim=0))
    rest = _gain(row.mass[:, -1] - mass[-1], row.moment[:, -1] - moment[-1])
    at = (best.pop() + rest).max(dim=0, keepdim=True).indices
    path = [at]
    for layer, gain in zip(best[::-1], gains.unbind()[::-1], strict=True):
        into = gain.gather(1, at.expand(len(offsets), *at.shape))[:, 0]
        at = (layer + into).max(dim=0, keepdim=True).indices
        path.append(at)
    inner = edges.gather(1, torch.stack(path[::-1]))[:, 0]
    return torch.cat([boundaries[:1], inner, boundaries[-1:]])


def _sums_rows_last(row: RowHistograms, edges: Tensor) -> tuple[Tensor, Tensor]:
    mass, moment = row.sums_below(edges.T.contiguous())
    return mass.T.contiguous(), moment.T.contiguous()


def _ends(padded: Tensor, widest: int) -> Tensor:
    """Return the view whose [widest − d, i] is the tensor's value d places before its i-th after the padding."""
    length, rows = padded.shape
    return padded.as_strided((widest + 1, length - widest, rows), (rows, rows, 1), padded.storage_offset())


def _gain(mass: Tensor, moment: Tensor) -> Tensor:
    """Return what intervals keep of Σ p x²: moment² / mass, float32; differences of integers lose nothing."""
    squared = moment.to(torch.float32)
    return squared.mul_(squared).div_(mass.to(torch.float32).clamp_min_(1))


def _means(row: RowHistograms, boundaries: Tensor) -> Tensor:
    """Return the intervals' means, in units of the row's largest: float64; an empty interval repeats the one before."""
    mass, moment = (each.diff(dim=1).double() for each in row.sums_below(boundaries))
    means = torch.where(mass > 0, moment / mass.clamp_min(1), -1)
    return torch.cummax(means, dim=1).values
