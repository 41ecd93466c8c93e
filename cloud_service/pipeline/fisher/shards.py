"""Cuts the calibration sequences into shards: the unit of work, of loss when a worker dies, and of the order of sums.

    rows of shard s = [ s·N // S, (s+1)·N // S )        S = the largest even number ≤ min(16, N)
    total of a half = ((0 + shard) + shard) + …         in the order of its shards; the first S/2 are the first half

Float sums depend on their order, so it is fixed here by N alone: how many workers there are, in which passes over the
blocks, and what was killed in between, changes no bit. The masks of the two halves tell how sure the mask is. At most
16 shards keep what is sent and stored independent of N. Knows nothing about models.
"""

from __future__ import annotations

_MOST_SHARDS = 16


def shard_count(sequences: int) -> int:
    """Return S, the number of shards of N ≥ 2 sequences; it is even."""
    return min(_MOST_SHARDS, sequences - sequences % 2)


def shard_rows(sequences: int, shard: int) -> range:
    """Return the sequences of one shard; none, at the end, of the shard after the last."""
    count = shard_count(sequences)
    return range(shard * sequences // count, (shard + 1) * sequences // count)


def half_of(sequences: int, shard: int) -> int:
    """Return which half a shard belongs to, 0 or 1."""
    return int(shard >= shard_count(sequences) // 2)
