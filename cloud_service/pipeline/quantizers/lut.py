"""A codebook per output row: weighted k-means in one dimension, solved almost exactly, many rows at once.

    min over c_1 … c_K, partition   Σ_i p_i (w_i − c_code(i))²        per row; K = 2^bits

Symbols: p ``importance`` (rows, columns), 0 at masked weights · w ``weight`` · c ``lut``.
In one dimension the clusters of an optimum are intervals of the sorted row, and any interval's cost comes from three
prefix sums. So: cut the sorted row at 192 candidate boundaries, denser where an optimal codebook is denser (its
density goes as the cube root of the weights' density); find the best K intervals between candidates by dynamic
programming; then let Lloyd's iteration move the boundaries to where they are exactly stationary. Against the exact
programme over all positions, the squared error summed over rows is less than 0.1 % above the optimum at 2 to 4 bits
(see the tests), at a fraction of its cost, and it runs on any device. 8 bits need no programme: 256 quantiles of that
density and Lloyd's iteration. Costs about K·192² additions, 2 ms on one CPU core, per row.
References: arXiv 2306.07629 (SqueezeLLM); Panter and Dite 1951.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shared.quantization.codec import QuantizedTensor
from shared.quantization.packing import pack_codes

_CANDIDATES = 192
_LARGEST_PROGRAMME = 16
_LLOYD_ITERATIONS = 100
_CHUNK_ELEMENTS = 1 << 21


def quantize_lut(weight: Tensor, importance: Tensor, bits: int) -> QuantizedTensor:
    """Return the weight with one codebook of 2^bits float16 values per row.

    Args:
        weight: float32 (out_features, in_features).
        importance: float32, the same shape, not negative; 0 leaves a weight out.
        bits: 2, 3, 4 or 8.
    """
    rows, columns = weight.shape
    per_chunk = max(1, _CHUNK_ELEMENTS // max(columns, (_CANDIDATES + 1) ** 2))
    luts, codes = [], []
    for start in range(0, rows, per_chunk):
        part = weight[start : start + per_chunk]
        lut = row_codebooks(part, importance[start : start + per_chunk], 1 << bits)
        luts.append(lut)
        codes.append(nearest_codes(part, lut))
    return QuantizedTensor(pack_codes(torch.cat(codes), bits), columns, bits, lut=torch.cat(luts))


def row_codebooks(weight: Tensor, importance: Tensor, size: int) -> Tensor:
    """Return one increasing codebook per row, float16 (rows, size)."""
    row = _SortedRows.of(weight, importance)
    if size <= _LARGEST_PROGRAMME:
        boundaries = _best_boundaries(row, _candidates(row, _CANDIDATES), size)
    else:
        boundaries = _candidates(row, size)
    means = _lloyd(row, boundaries)
    unused = means[:, -1:].expand(-1, size - means.shape[1])  # a row shorter than its codebook
    return torch.cat([means, unused], dim=1).to(torch.float16)


def nearest_codes(weight: Tensor, lut: Tensor) -> Tensor:
    """Return the index of the nearest codebook value, (rows, columns); the codebooks are sorted."""
    table = lut.to(torch.float32)
    middles = (table[:, 1:] + table[:, :-1]) / 2
    codes: Tensor = torch.searchsorted(middles.contiguous(), weight.contiguous())
    return codes


@dataclass(frozen=True, slots=True)
class _SortedRows:
    """Rows in increasing order, shifted to mean 0, and prefix sums with a leading 0, all float64.

    Attributes:
        values: x (rows, n); masked weights stand at the row's smallest other value, with no importance.
        shift: What was subtracted (rows, 1).
        sums: Σp, Σp·x, Σp·x² up to each position (3, rows, n + 1).
    """

    values: Tensor
    shift: Tensor
    sums: Tensor

    @classmethod
    def of(cls, weight: Tensor, importance: Tensor) -> _SortedRows:
        mass = importance.to(torch.float64)
        counted = mass > 0
        smallest = weight.masked_fill(~counted, torch.inf).amin(dim=1, keepdim=True)
        smallest = torch.where(torch.isfinite(smallest), smallest, 0)
        values, order = torch.where(counted, weight, smallest).to(torch.float64).sort(dim=1, stable=True)
        mass = mass.gather(1, order)
        mass = mass / mass.sum(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
        shift = (mass * values).sum(dim=1, keepdim=True)
        values = values - shift
        sums = torch.stack([mass, mass * values, mass * values**2]).cumsum(dim=2)
        return cls(values, shift, torch.nn.functional.pad(sums, (1, 0)))

    @property
    def length(self) -> int:
        return self.values.shape[1]

    def interval_sums(self, boundaries: Tensor) -> Tensor:
        """Return the three sums up to each boundary, (3, rows, boundaries)."""
        return self.sums.gather(2, boundaries.expand(3, *boundaries.shape))


def _candidates(row: _SortedRows, count: int) -> Tensor:
    """Return ``count`` + 1 increasing positions per row, the first 0 and the last n; all of them in a short row."""
    if row.length <= count:
        return torch.arange(row.length + 1, device=row.values.device).expand(len(row.values), -1)
    mass = row.sums[0].diff(dim=1)
    edges = torch.cat([row.values[:, :1], row.values, row.values[:, -1:]], dim=1)
    gaps = (edges[:, 2:] - edges[:, :-2]) / 2
    density = mass ** (1 / 3) * gaps ** (2 / 3)
    density = density / density.sum(dim=1, keepdim=True).clamp_min(1e-300) + 0.25 / row.length
    reached = density.cumsum(dim=1)
    targets = torch.arange(1, count, device=mass.device, dtype=torch.float64) / count * reached[:, -1:]
    inner = torch.searchsorted(reached, targets.contiguous())
    ends = torch.tensor([0, row.length], device=inner.device).expand(len(inner), 2)
    return torch.cat([ends[:, :1], inner, ends[:, 1:]], dim=1)


def _best_boundaries(row: _SortedRows, candidates: Tensor, size: int) -> Tensor:
    """Return the best ``size`` intervals between candidates: positions (rows, size + 1)."""
    cost = _interval_costs(row.interval_sums(candidates))
    layers = [cost[:, 0, :]]
    scratch = torch.empty_like(cost)
    for _ in range(1, size):
        layers.append(torch.add(layers[-1][:, :, None], cost, out=scratch).amin(dim=1))
    at = torch.full((len(candidates), 1), candidates.shape[1] - 1, device=candidates.device)
    path = [at]
    for best in layers[-2::-1]:
        # The choices are worked out again on the way back: amin is vectorised, a minimum with its index is not.
        into = cost.gather(2, at[:, None].expand(-1, cost.shape[1], 1))[:, :, 0]
        at = (best + into).argmin(dim=1, keepdim=True)
        path.append(at)
    path.append(torch.zeros_like(at))
    return candidates.gather(1, torch.cat(path[::-1], dim=1))


def _interval_costs(sums: Tensor) -> Tensor:
    """Return Σ p (x − mean)² of every interval from candidate m to candidate i, (rows, m, i); infinite where m > i."""
    mass, first, second = (part[:, None, :] - part[:, :, None] for part in sums)
    cost = second - first**2 / torch.where(mass > 0, mass, 1)
    backwards = torch.ones(cost.shape[1:], dtype=torch.bool, device=cost.device).tril(-1)
    costs: Tensor = cost.clamp_min(0).to(torch.float32).masked_fill(backwards, torch.inf)
    return costs


def _lloyd(row: _SortedRows, boundaries: Tensor) -> Tensor:
    """Move the boundaries until they are stationary; return the means of the intervals, float32 (rows, size)."""
    for _ in range(_LLOYD_ITERATIONS):
        means = _interval_means(row, boundaries)
        middles = (means[:, 1:] + means[:, :-1]) / 2
        inner = torch.searchsorted(row.values, middles.contiguous())
        moved = torch.cat([boundaries[:, :1], inner, boundaries[:, -1:]], dim=1)
        if torch.equal(moved, boundaries):
            break
        boundaries = moved
    means = _interval_means(row, boundaries) + row.shift
    return means.to(torch.float32)


def _interval_means(row: _SortedRows, boundaries: Tensor) -> Tensor:
    mass, first, _ = row.interval_sums(boundaries).diff(dim=2)
    means = torch.where(mass > 0, first / torch.where(mass > 0, mass, 1), -torch.inf)
    means = torch.cummax(means, dim=1).values  # an empty interval repeats the mean before it
    return torch.where(torch.isfinite(means), means, row.values[:, :1])
