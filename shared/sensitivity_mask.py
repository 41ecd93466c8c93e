"""The sensitivity mask of one tensor: which weights are tuned, and in which order of sensitivity.

    m_k = argmax_m ‖m ⊙ ∇f‖²        Definition 3

Kept as sorted flat indices into the row-major weight, one rank per index: rank 0 is the most sensitive weight of the
mask's scope, so that a client may use only the top part of a larger mask. Knows nothing about how it was chosen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.errors import IndicesDuplicated, IndicesOutOfRange, IndicesUnsorted, RanksInvalid

INDEX_LIMIT = 2**31
"""A tensor must have fewer elements than this, for its indices are int32."""


@dataclass(frozen=True, slots=True)
class SensitivityMask:
    """Sorted flat indices and their ranks, both int32 (k,).

    Attributes:
        indices: Strictly increasing positions in the flattened (row-major) weight.
        rank: Rank of each index in the mask's scope, 0 = largest Fisher value; ties by position.
    """

    indices: NDArray[np.int32]
    rank: NDArray[np.int32]

    def __len__(self) -> int:
        return int(self.indices.size)

    def top(self, count: int) -> NDArray[np.bool_]:
        """Return which entries belong to the ``count`` most sensitive ones of the scope, bool (k,)."""
        return np.asarray(self.rank < count)


def check_indices(tensor: str, indices: NDArray[np.int32], element_count: int) -> None:
    """Refuse indices that are unsorted, duplicated or out of range.

    Raises:
        IndicesOutOfRange: An index is negative or ≥ ``element_count``.
        IndicesDuplicated: Two neighbouring indices are equal.
        IndicesUnsorted: An index is smaller than its predecessor.
    """
    if indices.size == 0:
        return
    low, high = int(indices.min()), int(indices.max())
    if low < 0 or high >= element_count:
        raise IndicesOutOfRange(
            f"{tensor}: sensitive index {low if low < 0 else high} in a tensor of {element_count} elements",
            needed=f"indices in [0, {element_count})",
        )
    steps = np.diff(indices)
    if (steps < 0).any():
        at = int(np.argmax(steps < 0))
        raise IndicesUnsorted(
            f"{tensor}: sensitive index {indices[at + 1]} follows {indices[at]}", needed="increasing indices"
        )
    if (steps == 0).any():
        raise IndicesDuplicated(
            f"{tensor}: sensitive index {indices[int(np.argmax(steps == 0))]} occurs twice", needed="unique indices"
        )


def check_ranks(scope: str, ranks: NDArray[np.int32]) -> None:
    """Refuse ranks that are not a permutation of 0 … k−1 over their scope.

    Raises:
        RanksInvalid: A rank is missing, repeated or out of range.
    """
    if not np.array_equal(np.sort(ranks), np.arange(ranks.size, dtype=np.int32)):
        raise RanksInvalid(f"{scope}: the {ranks.size} sensitivity ranks are no permutation of 0 … {ranks.size - 1}")
