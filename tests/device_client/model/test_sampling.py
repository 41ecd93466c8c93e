"""Next-token choice, worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from device_client.model.sampling import choose_token, nucleus

PROBABILITIES = np.array([0.1, 0.5, 0.15, 0.25])
LOGITS = torch.tensor(PROBABILITIES).log()


def test_temperature_zero_takes_the_likeliest_and_the_first_of_equals() -> None:
    assert choose_token(LOGITS, 0.0, 1.0, None) == 1
    assert choose_token(torch.tensor([1.0, 3.0, 3.0]), 0.0, 1.0, None) == 1


@pytest.mark.parametrize(
    ("top_p", "ids", "probabilities"),
    [
        (0.3, [1], [1.0]),
        (0.6, [1, 3], [2 / 3, 1 / 3]),
        (0.8, [1, 3, 2], [5 / 9, 2.5 / 9, 1.5 / 9]),
        (1.0, [1, 3, 2, 0], [0.5, 0.25, 0.15, 0.1]),
    ],
)
def test_the_nucleus_is_the_smallest_set_that_reaches_top_p(
    top_p: float, ids: list[int], probabilities: list[float]
) -> None:
    order, kept = nucleus(LOGITS.double().numpy(), top_p)

    assert order.tolist() == ids
    np.testing.assert_allclose(kept, probabilities, rtol=1e-6)  # float32 logits


def test_a_set_that_reaches_top_p_exactly_is_enough() -> None:
    order, kept = nucleus(np.array([1.0, 1.0]), 0.5)

    assert (order.tolist(), kept.tolist()) == ([0], [1.0])


def test_samples_have_the_softmax_frequencies() -> None:
    generator = np.random.default_rng(0)
    count = 4000

    tokens = [choose_token(LOGITS, 1.0, 1.0, generator) for _ in range(count)]

    # Four standard errors of a frequency at 4,000 draws: 4 · sqrt(0.25 / 4000) = 0.032.
    np.testing.assert_allclose(np.bincount(tokens, minlength=4) / count, PROBABILITIES, atol=0.032)


def test_a_high_temperature_flattens_and_a_low_one_sharpens() -> None:
    _, flat = nucleus(LOGITS.double().numpy() / 100, 1.0)
    _, sharp = nucleus(LOGITS.double().numpy() / 0.01, 1.0)

    np.testing.assert_allclose(flat, [0.25] * 4, atol=0.01)
    assert sharp[0] > 0.999
