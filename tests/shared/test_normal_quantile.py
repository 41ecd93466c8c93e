"""Random bits become normal values: near the true quantile everywhere, symmetric, and by float32 arithmetic alone."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.normal_quantile import COEFFICIENTS, normal_values

SIGN = 1 << 31
words = st.integers(0, SIGN - 1)


def quantile(word: int) -> float:
    """z of a word with sign bit 0: its other bits, made odd, are the probability of a larger value, in 2^-32."""
    return -NormalDist().inv_cdf((word | 1) / 2**32)


def value(word: int) -> float:
    return float(normal_values(np.array([word], np.uint32))[0])


@given(words)
def test_a_word_becomes_its_quantile(word: int) -> None:
    assert abs(value(word) - quantile(word)) < 6e-6


@pytest.mark.parametrize("octave", range(31))
def test_both_ends_of_every_octave_are_their_quantiles(octave: int) -> None:
    for word in (1 << octave, (2 << octave) - 1 if octave < 30 else (1 << 31) - 129):
        assert abs(value(word) - quantile(word)) < 6e-6


@given(words)
def test_the_highest_bit_is_the_sign(word: int) -> None:
    assert value(word | SIGN) == -value(word)


def test_the_largest_value_is_that_of_the_smallest_probability() -> None:
    assert 6.2 < value(0) < 6.3
    assert value(SIGN) == -value(0)
    assert abs(value(SIGN - 1)) < 1e-6


def test_the_polynomials_interpolate_the_quantile_at_the_zeros_of_chebyshevs() -> None:
    """Where the table comes from: six points of each octave, t = cos((2i + 1)π/12) / 2."""
    places = np.cos((2 * np.arange(6) + 1) * np.pi / 12) / 2
    for octave, row in enumerate(COEFFICIENTS[:31]):
        exact = [-NormalDist().inv_cdf(2.0**octave * (1.5 + place) / 2**32) for place in places]
        fitted = np.polynomial.polynomial.polyfit(places, exact, 5)
        assert np.allclose(row, fitted, rtol=2e-7, atol=1e-8), octave
    assert not COEFFICIENTS[31].any()


def test_moments_are_those_of_a_normal_distribution() -> None:
    """Over evenly spread words instead of random ones: what is left is the error of the values."""
    z = normal_values(np.arange(1024, 1 << 32, 2048, dtype=np.uint64).astype(np.uint32)).astype(np.float64)
    assert abs(z.mean()) < 1e-5
    assert np.allclose([(z**power).mean() for power in (2, 4, 6)], [1, 3, 15], rtol=2e-4)


@pytest.mark.parametrize("count", [0, 1, (1 << 15) + 1])
def test_any_number_of_words_can_be_given(count: int) -> None:
    bits = np.random.default_rng(0).integers(0, 1 << 32, count, dtype=np.uint32)
    together = normal_values(bits)
    assert together.shape == (count,)
    assert together.tolist()[-3:] == [value(int(word)) for word in bits[-3:]]
