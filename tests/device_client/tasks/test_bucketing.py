"""The cut into micro-batches: worked by hand, against all cuts, and never worse than the equal cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_client.tasks.bucketing import OVERHEAD_TOKENS, cut_into_buckets

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=9).map(sorted)


def cost(lengths: Sequence[int], cuts: Sequence[tuple[int, int]], overhead: int) -> int:
    return sum(overhead + (last - first) * max(lengths[first:last]) for first, last in cuts)


def all_cuts(count: int, most_rows: int) -> Iterator[list[tuple[int, int]]]:
    for number in range(count):
        for inner in combinations(range(1, count), number):
            cuts = list(pairwise([0, *inner, count]))
            if all(last - first <= most_rows for first, last in cuts):
                yield cuts


def test_a_long_sequence_runs_alone_where_padding_costs_more_than_another_pass() -> None:
    """2, 3, 3 beside 20 would compute 4 · 20 = 80 tokens; apart 10 + 3 · 3 and 10 + 20, 49 in all."""
    assert cut_into_buckets([2, 3, 3, 20], most_rows=4, overhead_tokens=10) == ((0, 3), (3, 4))


def test_all_run_together_where_another_pass_costs_more_than_padding() -> None:
    """Together 60 + 80 = 140; the best cut in two, 60 + 9 + 60 + 20 = 149."""
    assert cut_into_buckets([2, 3, 3, 20], most_rows=4, overhead_tokens=60) == ((0, 4),)


def test_the_memory_bounds_the_rows_of_a_bucket() -> None:
    """Two passes at least: cut as 1 + 3 they compute 5 + 27 tokens, as 2 + 2 10 + 18, as 3 + 1 24 + 9."""
    assert cut_into_buckets([5, 5, 8, 9], most_rows=3, overhead_tokens=1000) == ((0, 2), (2, 4))


def test_of_equally_cheap_cuts_the_last_bucket_is_longest() -> None:
    """One decoding more costs just what the padding of 1 to 5 does: 4 + 2 · 5 = (4 + 1) + (4 + 5)."""
    assert cut_into_buckets([1, 5], most_rows=2, overhead_tokens=4) == ((0, 2),)
    assert cut_into_buckets([7, 7, 7], most_rows=2, overhead_tokens=4) == ((0, 1), (1, 3))


@given(LENGTHS, st.integers(1, 10), st.integers(0, 60))
def test_no_cut_is_cheaper(lengths: list[int], most_rows: int, overhead: int) -> None:
    cuts = cut_into_buckets(lengths, most_rows=most_rows, overhead_tokens=overhead)
    assert cuts in [tuple(other) for other in all_cuts(len(lengths), most_rows)]
    assert cost(lengths, cuts, overhead) == min(
        cost(lengths, other, overhead) for other in all_cuts(len(lengths), most_rows)
    )


@given(LENGTHS, st.integers(1, 9))
def test_no_grouping_of_unsorted_sequences_is_cheaper_than_the_consecutive_ones(
    lengths: list[int], most_rows: int
) -> None:
    """Sorting first loses nothing: any set partition, not only a consecutive one, costs at least as much."""
    lengths = lengths[:6]

    def partitions(rest: list[int]) -> Iterator[list[list[int]]]:
        if not rest:
            yield []
            return
        for smaller in partitions(rest[1:]):
            yield [[rest[0]], *smaller]
            for index, group in enumerate(smaller):
                yield [*smaller[:index], [rest[0], *group], *smaller[index + 1 :]]

    cheapest = min(
        sum(20 + len(group) * max(group) for group in groups)
        for groups in partitions(lengths)
        if all(len(group) <= most_rows for group in groups)
    )
    assert cost(lengths, cut_into_buckets(lengths, most_rows=most_rows, overhead_tokens=20), 20) == cheapest


@given(st.lists(st.integers(1, 512), min_size=1, max_size=64).map(sorted), st.integers(1, 64))
def test_the_equal_cut_is_never_cheaper(lengths: list[int], most_rows: int) -> None:
    equal = list(pairwise([*range(0, len(lengths), most_rows), len(lengths)]))
    cuts = cut_into_buckets(lengths, most_rows=most_rows)
    assert cost(lengths, cuts, OVERHEAD_TOKENS) <= cost(lengths, equal, OVERHEAD_TOKENS)


@pytest.mark.parametrize(("lengths", "most_rows"), [([3, 2], 4), ([2, 3], 0)])
def test_unsorted_lengths_and_no_rows_are_refused(lengths: list[int], most_rows: int) -> None:
    with pytest.raises(ValueError, match="needed ascending lengths and at least 1 row at once"):
        cut_into_buckets(lengths, most_rows=most_rows)
