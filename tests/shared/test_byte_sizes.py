"""Byte sizes: what is asked for is enough when it is typed back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.byte_sizes import format_bytes, format_enough, parse_bytes


@given(st.integers(1, 2**50))
def test_a_size_that_is_asked_for_is_enough_when_typed_back(size: int) -> None:
    assert size <= parse_bytes(format_enough(size)) <= 1.11 * size + 1


@pytest.mark.parametrize(
    ("size", "enough", "nearest"),
    [(1000, "1000 B", "1000 B"), (1024**3 + 1, "1.1 GiB", "1.0 GiB"), (12_026_000_000, "11.3 GiB", "11.2 GiB")],
)
def test_what_is_enough_is_rounded_up(size: int, enough: str, nearest: str) -> None:
    assert (format_enough(size), format_bytes(size)) == (enough, nearest)
