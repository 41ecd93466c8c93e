"""Which rows each step sees, from (seed, step) alone.

Rows are numbered through the epochs: position p lies in epoch p // n at p mod n of that epoch's permutation, and
step t takes the positions t·B … t·B + B − 1. So every row is seen once per epoch, a batch may span two epochs, and
any step's rows can be found again without the steps before it. Permutations are drawn from the run seed's Philox
stream at counters that no perturbation uses (query 2^63). Knows nothing about what a row is.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from shared.perturbation import random_generator

_SHUFFLE_STREAM = 1 << 63
"""Query number of the shuffles; the queries of a step count from 0 and never get here."""


class BatchIndices:
    """The rows of each step.

    Args:
        row_count: n ≥ 1.
        batch_size: B ≥ 1; more than n repeats rows.
        seed: Run seed.
    """

    def __init__(self, row_count: int, batch_size: int, seed: int) -> None:
        self.row_count = row_count
        self.batch_size = batch_size
        self._permutation = lru_cache(maxsize=2)(lambda epoch: epoch_permutation(seed, epoch, row_count))

    def __call__(self, step: int) -> list[int]:
        """Return the row numbers of a step, in order."""
        positions = range(step * self.batch_size, (step + 1) * self.batch_size)
        return [int(self._permutation(p // self.row_count)[p % self.row_count]) for p in positions]


def epoch_permutation(seed: int, epoch: int, row_count: int) -> NDArray[np.int64]:
    """Return the order of all rows in one epoch, int64 (row_count,)."""
    return random_generator(seed, epoch, _SHUFFLE_STREAM).permutation(row_count)
