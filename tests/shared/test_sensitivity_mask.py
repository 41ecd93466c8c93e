"""Masks: sorted, unique, in range; ranks a permutation."""

from __future__ import annotations

import numpy as np
import pytest

from shared.errors import IndicesDuplicated, IndicesOutOfRange, IndicesUnsorted, RanksInvalid
from shared.sensitivity_mask import SensitivityMask, check_indices, check_ranks


def int32(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


@pytest.mark.parametrize("indices", [int32(), int32(0), int32(0, 3, 9)])
def test_sorted_unique_indices_in_range_are_accepted(indices):
    check_indices("w", indices, 10)


@pytest.mark.parametrize(
    ("indices", "error"),
    [
        (int32(0, 10), IndicesOutOfRange),
        (int32(-1, 3), IndicesOutOfRange),
        (int32(3, 2), IndicesUnsorted),
        (int32(2, 2), IndicesDuplicated),
    ],
)
def test_each_fault_of_indices_has_its_error(indices, error):
    with pytest.raises(error, match="w: sensitive index"):
        check_indices("w", indices, 10)


@pytest.mark.parametrize("ranks", [int32(1), int32(0, 0), int32(0, 2), int32(-1, 0)])
def test_ranks_that_are_no_permutation_are_refused(ranks):
    with pytest.raises(RanksInvalid):
        check_ranks("w", ranks)


def test_the_top_of_a_mask_is_its_lowest_ranks():
    mask = SensitivityMask(int32(1, 5, 8), int32(2, 0, 1))
    assert len(mask) == 3
    assert mask.indices[mask.top(2)].tolist() == [5, 8]
