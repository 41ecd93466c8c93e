"""The measured step worked by hand."""

from __future__ import annotations

import math

import pytest

from device_client.tuning.measured_step import MEASURE_EVERY, WARMUP_STEPS, WINDOW, MeasuredStep
from device_client.tuning.measurements import Sample
from device_client.tuning.settings import TuneSettings

START_LOSS, CURVATURE, MEAN_SQUARE = 2.0, 25.0, 4.0


def sample(curvature: float = math.nan, *, loss: float = START_LOSS, row_square: float = CURVATURE) -> Sample:
    """What a step of four rows measured: (4·V − E[gᵢ²]) / 3 is the signal."""
    return Sample(MEAN_SQUARE, (4 * MEAN_SQUARE - row_square) / 3, curvature, loss)


def fresh(*, value_rms: float = 10.0, **changes: object) -> MeasuredStep:
    """A step whose start is validated."""
    options: dict[str, object] = {"steps": 400, "epsilon": 0.01, "decay": "constant", "batch_size": 4} | changes
    step = MeasuredStep(TuneSettings(**options), value_rms)  # type: ignore[arg-type]
    assert step.validated(START_LOSS) is False
    return step


def started(*, value_rms: float = 10.0, **changes: object) -> MeasuredStep:
    """A step whose warm-up is over, with t = 25 and V = 4 throughout."""
    step = fresh(value_rms=value_rms, **changes)
    for _ in range(WARMUP_STEPS - 1):
        step.next(MEAN_SQUARE, sample(CURVATURE))
    return step


def test_the_walk_of_the_whole_run_costs_a_quarter_of_the_loss() -> None:
    """ω = √(2/50) = 0.2; η = 0.2 / √(400·4) = 0.005. So T·½·η²·V·t = 400·½·2.5e-5·4·25 = 0.5 = L/4."""
    assert started().next(MEAN_SQUARE, sample(CURVATURE)) == pytest.approx(0.005)


def test_what_is_gained_shortens_the_steps() -> None:
    """The loss falls to a quarter: so does ½·η²."""
    step = started()
    for _ in range(WINDOW):
        last = step.next(MEAN_SQUARE, sample(CURVATURE, loss=START_LOSS / 4))
    assert last == pytest.approx(0.0025)


def test_a_loss_that_rises_lengthens_no_step() -> None:
    step = started()
    assert [step.next(MEAN_SQUARE, sample(CURVATURE, loss=80.0)) for _ in range(WINDOW)] == pytest.approx(
        [0.005] * WINDOW
    )


def test_a_longer_run_takes_shorter_steps() -> None:
    assert started(steps=1600).next(MEAN_SQUARE, sample(CURVATURE)) == pytest.approx(0.0025)


def test_the_walk_is_at_most_as_long_as_the_values_are() -> None:
    """rms(θ₀) = 0.1 < 0.2."""
    assert started(value_rms=0.1).next(MEAN_SQUARE, sample(CURVATURE)) == pytest.approx(0.0025)


def test_a_step_never_overshoots_what_the_curvature_allows() -> None:
    """V = 1e-9 would make it 316 times as long; 1 / t = 0.04."""
    assert started().next(1e-9, sample(CURVATURE)) == pytest.approx(0.04)


def test_several_directions_take_a_longer_step() -> None:
    """The noise of four is a quarter: twice as long at the same T, and four times at the same number of passes."""
    assert started(queries=4).next(MEAN_SQUARE, sample(CURVATURE)) == pytest.approx(0.01)
    assert started(queries=4, steps=100).next(MEAN_SQUARE, sample(CURVATURE)) == pytest.approx(0.02)


def test_the_first_steps_grow_in_line() -> None:
    step = fresh()
    rates = [step.next(MEAN_SQUARE, sample(CURVATURE)) for _ in range(WARMUP_STEPS + 1)]
    assert rates == pytest.approx([0.005 * min(8, n) / 8 for n in range(1, WARMUP_STEPS + 2)])


def test_curvature_is_measured_in_the_first_steps_and_then_now_and_then() -> None:
    step = fresh()
    wanted = [number for number in range(3 * MEASURE_EVERY) if step.wants_curvature(number)]
    assert wanted == [*range(WARMUP_STEPS), MEASURE_EVERY, 2 * MEASURE_EVERY]


def test_a_step_without_a_measurement_uses_those_before_it() -> None:
    assert started().next(MEAN_SQUARE, sample(math.nan)) == pytest.approx(0.005)


def test_old_squares_of_rows_are_forgotten() -> None:
    step = started()
    for _ in range(WINDOW):
        last = step.next(MEAN_SQUARE, sample(row_square=4 * CURVATURE))
    assert last == pytest.approx(0.0025)


def test_second_differences_count_where_they_are_clearly_larger() -> None:
    """Eight of 100 beside squares of 25: a mean over many tokens has rows of small gradients and no less curvature."""
    step = fresh()
    for _ in range(WARMUP_STEPS):
        last = step.next(MEAN_SQUARE, sample(4 * CURVATURE))
    assert last == pytest.approx(0.0025)


def test_second_differences_that_scatter_count_for_nothing() -> None:
    """The mean of 400 and −300 in turns is 50, twice its standard error 265."""
    step = fresh()
    for number in range(WARMUP_STEPS):
        last = step.next(MEAN_SQUARE, sample((400.0, -300.0)[number % 2]))
    assert last == pytest.approx(0.005)


def test_without_curvature_the_values_length_alone_is_the_measure() -> None:
    step = fresh(value_rms=0.1)
    for _ in range(WARMUP_STEPS):
        last = step.next(MEAN_SQUARE, sample(-5.0, row_square=0.0))
    assert last == pytest.approx(0.0025)


def test_no_gradient_at_all_moves_nothing() -> None:
    assert started().next(0.0, sample(CURVATURE)) == 0.0


def test_epsilon_doubles_until_the_curvature_is_clear_of_rounding() -> None:
    """ε²·t ≥ 1e-4·2 at t = 0.5 from ε = 0.02 on: 0.001 → 0.002 → 0.004 → 0.008 → 0.016 → 0.032."""
    step = fresh(epsilon=1e-3)
    seen = []
    for _ in range(WARMUP_STEPS + 4):
        seen.append(step.epsilon)
        step.next(MEAN_SQUARE, sample(0.5))
    assert seen[:7] == pytest.approx([0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.032])
    assert set(seen[7:]) == {0.032}


def test_epsilon_stays_below_a_quarter_of_the_values() -> None:
    step = fresh(epsilon=1e-3, value_rms=0.01)
    for _ in range(WARMUP_STEPS):
        step.next(MEAN_SQUARE, sample(0.0))
    assert step.epsilon == 0.0025


def test_a_large_epsilon_that_was_asked_for_stays() -> None:
    step = fresh(epsilon=0.1, value_rms=0.01)
    step.next(MEAN_SQUARE, sample(0.0))
    assert step.epsilon == 0.1


def test_where_more_than_half_of_the_gain_is_lost_it_goes_back_and_halves_the_step() -> None:
    """2.0 → 1.0 gains 1.0: 1.4 stays, 1.6 goes back."""
    step = started()
    assert [step.validated(loss) for loss in (1.0, 1.4, 1.6, 1.2)] == [False, False, True, False]
    assert step.next(MEAN_SQUARE, sample(CURVATURE)) == pytest.approx(0.0025)


def test_where_nothing_was_gained_a_small_rise_stays() -> None:
    step = fresh()
    assert [step.validated(loss) for loss in (2.0, 2.019, 2.021)] == [False, False, True]


def test_a_rise_of_four_times_what_the_walk_should_have_cost_stays() -> None:
    """A quarter of 400 steps, of a walk that costs 0.5 nats in all."""
    step = started()
    for _ in range(100 - (WARMUP_STEPS - 1)):
        step.next(MEAN_SQUARE, sample(CURVATURE))
    assert [step.validated(loss) for loss in (2.499, 2.501)] == [False, True]


@pytest.mark.parametrize("loss", [math.inf, math.nan])
def test_a_loss_that_is_not_finite_goes_back(loss: float) -> None:
    assert started().validated(loss) is True
