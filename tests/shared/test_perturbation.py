"""The perturbation stream is stateless, portable and has the moments it claims."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.normal_quantile import normal_values
from shared.perturbation import perturbation, random_generator

GOLDEN = {
    "gaussian": "90d5ea05c71d8cc529fcc7f4ac9976ebab7c303a226fb7d80dde126ab9622170",
    "rademacher": "0c407d37689ceff45e50babd0920ae0caf4e3ba73de80f021a9de8bfee8229eb",
}
positions = st.integers(0, 2**64 - 1)


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
def test_the_bytes_of_the_stream_never_change(distribution):
    z = perturbation(1234, 7, 0, 1000, distribution)
    assert hashlib.sha256(z.astype("<f4").tobytes()).hexdigest() == GOLDEN[distribution]


def test_first_values_are_those_of_philox_with_the_seed_as_key_and_step_and_query_in_the_upper_counter():
    words = np.random.Philox(key=[1234, 0], counter=[0, 0, 3, 7]).random_raw(1)
    signs = [1.0 if (int(words[0]) >> bit) & 1 else -1.0 for bit in range(64)]
    assert perturbation(1234, 7, 3, 64, "rademacher").tolist() == signs


@given(seed=positions, step=positions, query=positions)
def test_any_position_can_be_drawn_again(seed, step, query):
    first = perturbation(seed, step, query, 5)
    perturbation(seed, (step + 1) % 2**64, query, 5)
    assert first.tobytes() == perturbation(seed, step, query, 5).tobytes()


@given(seed=positions, step=st.integers(0, 2**64 - 2), query=st.integers(0, 2**64 - 2))
def test_neighbouring_positions_share_no_draw(seed, step, query):
    here = set(perturbation(seed, step, query, 16).tolist())
    for other in ((seed ^ 1, step, query), (seed, step + 1, query), (seed, step, query + 1)):
        assert here.isdisjoint(perturbation(*other, 16).tolist())


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
def test_mean_is_zero_and_variance_one(distribution):
    z = perturbation(0, 0, 0, 1_000_000, distribution).astype(np.float64)
    assert abs(z.mean()) < 5e-3  # five standard errors of a mean of 10^6 draws
    assert abs(z.var() - 1) < 8e-3  # five standard errors of the variance, √(2/10^6) each


def test_gaussian_tails_are_gaussian():
    z = perturbation(3, 1, 4, 1_000_000)
    assert abs(float((np.abs(z) > 3).mean()) - 0.0026998) < 2.6e-4  # five standard errors


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
@pytest.mark.parametrize("count", [1, 70, 71])
def test_a_prefix_does_not_depend_on_the_length(distribution, count):
    longer = perturbation(9, 9, 9, 100, distribution)
    assert longer[:count].tolist() == perturbation(9, 9, 9, count, distribution).tolist()


def test_a_gaussian_word_makes_two_values_its_lower_half_first():
    words = np.random.Philox(key=[1234, 0], counter=[0, 0, 3, 7]).random_raw(2)
    halves = np.array([half for word in words for half in (word & 0xFFFFFFFF, word >> np.uint64(32))], np.uint32)
    assert perturbation(1234, 7, 3, 4).tolist() == normal_values(halves).tolist()


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
def test_no_values_can_be_asked_for(distribution):
    assert perturbation(0, 0, 0, 0, distribution).shape == (0,)


@pytest.mark.parametrize(("seed", "step", "query"), [(-1, 0, 0), (2**64, 0, 0), (0, -1, 0), (0, 0, 2**64)])
def test_positions_outside_64_bits_are_refused(seed, step, query):
    with pytest.raises(ValueError, match="2\\^64"):
        random_generator(seed, step, query)
