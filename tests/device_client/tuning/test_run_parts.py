"""Small parts of a run: batches, fidelity, curve."""

from __future__ import annotations

import math

import pytest
import torch

from device_client.tuning.batches import BatchIndices
from device_client.tuning.curve import draw_curve, moving_average, sparkline
from device_client.tuning.fidelity import check_fidelity, lost_share, noise_floor
from device_client.tuning.spsa import Losses
from shared.errors import InvalidRequest
from shared.perturbation import perturbation


def test_every_row_is_seen_once_per_epoch() -> None:
    batches = BatchIndices(row_count=10, batch_size=4, seed=3)
    seen = [index for step in range(5) for index in batches(step)]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]


def test_any_step_is_found_without_the_steps_before_it() -> None:
    in_order = [BatchIndices(7, 3, seed=1)(step) for step in range(20)]
    batches = BatchIndices(7, 3, seed=1)
    assert [batches(step) for step in reversed(range(20))] == in_order[::-1]
    assert [BatchIndices(7, 3, seed=2)(step) for step in range(20)] != in_order


def test_a_batch_larger_than_the_data_repeats_rows() -> None:
    assert sorted(BatchIndices(2, 4, seed=0)(5)) == [0, 0, 1, 1]


def theta_and_z() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(perturbation(0, 0, 0, 4096)) * 0.05, torch.from_numpy(perturbation(0, 1, 0, 4096))


def test_float32_loses_nothing_of_note() -> None:
    assert lost_share(*theta_and_z(), 1e-3, torch.float32) < 1e-4


def test_an_exact_perturbation_is_exact() -> None:
    """θ = 1, z = ±1, ε = 2⁻⁸: both signs are float16 numbers."""
    z = torch.tensor([1.0, -1.0])
    assert lost_share(torch.ones(2), z, 2**-8, torch.float16) == 0.0


def test_a_perturbation_below_the_spacing_is_lost_whole() -> None:
    """bfloat16 has a spacing of 2⁻⁷ above 1 and 2⁻⁸ below: 1 ± 2⁻¹² both round to 1."""
    assert lost_share(torch.ones(3), torch.ones(3), 2**-12, torch.bfloat16) == 1.0


def test_too_small_an_epsilon_is_refused_with_one_that_works() -> None:
    theta, z = theta_and_z()
    with pytest.raises(InvalidRequest, match="bfloat16 loses") as caught:
        check_fidelity(theta, z, 1e-4, torch.bfloat16)
    epsilon = float(caught.value.next_step.removeprefix("--epsilon "))
    assert check_fidelity(theta, z, epsilon, torch.bfloat16) <= 0.05
    assert lost_share(theta, z, epsilon / 2, torch.bfloat16) > 0.05


def test_the_moving_average_is_bias_corrected_and_passes_over_gaps() -> None:
    assert moving_average([4.0, math.nan, 4.0], decay=0.5) == [4.0, 4.0, 4.0]
    assert moving_average([0.0, 3.0], decay=0.5) == [0.0, 2.0]  # (½·½·0 + ½·3) / (1 − ½²)
    assert math.isnan(moving_average([math.inf])[0])


def test_a_sparkline_goes_from_lowest_to_highest() -> None:
    assert sparkline([7, 6, 5, 4, 3, 2, 1, 0]) == "█▇▆▅▄▃▂▁"
    assert sparkline([1.0, math.nan, 1.0]) == "▁▁"
    assert sparkline([]) == ""
    assert len(sparkline(list(range(1000)), width=40)) == 40


def test_the_same_numbers_draw_the_same_picture() -> None:
    picture = draw_curve([1.0, 0.9, math.nan, 0.8], [(0, 1.0), (4, 0.8)])
    assert picture == draw_curve([1.0, 0.9, math.nan, 0.8], [(0, 1.0), (4, 0.8)])
    assert picture.startswith(b"<?xml")
    assert b"validation" in picture
    assert b"<svg" in draw_curve([], [])


def noisy_line(slope: float, noise: list[float]) -> Losses[None]:
    """L(θ) = slope · θ₀ plus, for each loss asked for, the next of ``noise``."""
    remaining = iter(noise)
    return lambda thetas, _batch: torch.tensor(
        [[slope * float(theta[0]) + next(remaining)] for theta in thetas], dtype=torch.float64
    )


def test_the_noise_floor_is_what_a_small_perturbation_changes_beyond_its_share() -> None:
    """ΔL(ε) = 2·3·ε exactly; ΔL(ε/16) is off by 0.003 along one direction and by −0.004 along the other."""
    losses = noisy_line(3.0, [0, 0, 0, 0, 0.003, 0, 0, 0.004])
    directions = [torch.ones(1), torch.ones(1)]

    found = noise_floor(losses, torch.zeros(1), directions, 0.125, None).noise

    assert found == pytest.approx(math.sqrt((0.003**2 + 0.004**2) / 2), abs=1e-9)


def test_exact_losses_have_no_noise_floor_and_infinite_ones_no_number() -> None:
    assert noise_floor(noisy_line(3.0, [0] * 4), torch.zeros(1), [torch.ones(1)], 0.125, None).noise == 0
    assert math.isnan(
        noise_floor(noisy_line(3.0, [0, math.inf, 0, 0]), torch.zeros(1), [torch.ones(1)], 0.125, None).noise
    )
