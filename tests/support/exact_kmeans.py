"""Weighted k-means in one dimension, exactly: the error of the best codebook, for tests and benchmarks to compare with.

    best_k(i) = min over m ≤ i of best_{k−1}(m) + cost(m, i)        over all positions of the sorted row

cost(m, i) is the weighted variance of the values m … i − 1, from prefix sums. The best m never decreases with i, so
that each layer is solved by halving: O(K n log n), 20 ms for 320 and 50 ms for 4,096 values at K = 16. NumPy, float64.
Reference: Grønlund et al. 2017, arXiv 1701.07204.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Positions = NDArray[np.int64]


def least_error(values: NDArray[np.generic], mass: NDArray[np.generic], clusters: int) -> float:
    """Return min Σ mass (value − its cluster's mean)² over all ways to form at most ``clusters`` clusters."""
    row = _Sums.of(values.astype(np.float64), mass.astype(np.float64))
    best = row.cost(np.zeros_like(row.ends), row.ends)
    for _ in range(clusters - 1):
        best = _next_layer(best, row)
    return float(best[-1])


def codebook_error(values: NDArray[np.generic], mass: NDArray[np.generic], codebook: NDArray[np.generic]) -> float:
    """Return Σ mass (value − nearest codebook value)²."""
    table = np.sort(codebook.astype(np.float64))
    after = np.searchsorted(table, values).clip(1, len(table) - 1) if len(table) > 1 else np.zeros(len(values), int)
    distance = np.minimum(np.abs(values - table[after]), np.abs(values - table[after - 1]))
    return float((mass.astype(np.float64) * distance**2).sum())


@dataclass(frozen=True)
class _Sums:
    mass: Floats
    first: Floats
    second: Floats

    @classmethod
    def of(cls, values: Floats, mass: Floats) -> _Sums:
        counted = np.flatnonzero(mass > 0)
        order = counted[np.argsort(values[counted], kind="stable")]
        p = mass[order]
        x = values[order] - np.average(values[order], weights=p)
        return cls(*(np.concatenate([[0.0], np.cumsum(term)]) for term in (p, p * x, p * x * x)))

    @property
    def ends(self) -> Positions:
        return np.arange(len(self.mass))

    def cost(self, start: Positions, end: Positions) -> Floats:
        mass, first, second = (each[end] - each[start] for each in (self.mass, self.first, self.second))
        return np.maximum(second - first**2 / np.where(mass > 0, mass, 1), 0)


def _next_layer(best: Floats, row: _Sums) -> Floats:
    """Return the layer after ``best``: the middles of all open ranges at once, then the ranges' halves."""
    layer = np.empty_like(best)
    low, high = np.array([0]), np.array([len(best)])  # positions [low, high) are open …
    first, last = np.array([0]), np.array([len(best) - 1])  # … and their best starts lie in [first, last]
    while len(low):
        middle = (low + high) // 2
        counts = np.minimum(last, middle) - first + 1
        at = np.concatenate([[0], np.cumsum(counts)[:-1]])
        starts = np.arange(counts.sum()) - np.repeat(at - first, counts)
        total = best[starts] + row.cost(starts, np.repeat(middle, counts))
        layer[middle] = np.minimum.reduceat(total, at)
        hits = np.flatnonzero(total == np.repeat(layer[middle], counts))
        start = starts[hits[np.searchsorted(hits, at)]]
        left, right = low < middle, middle + 1 < high
        first, last = np.concatenate([first[left], start[right]]), np.concatenate([start[left], last[right]])
        low, high = np.concatenate([low[left], middle[right] + 1]), np.concatenate([middle[left], high[right]])
    return layer
