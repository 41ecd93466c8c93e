"""Learning rates worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from device_client.tuning.measurements import Sample
from device_client.tuning.schedules import MEDIAN_WARMUP, ChosenScale, StepSize, StepSizeSchedule
from device_client.tuning.settings import TuneSettings


class Schedule(StepSizeSchedule):
    """A schedule of a chosen step over four values."""

    def __init__(self, **changes: object) -> None:
        options: dict[str, object] = {"steps": 100, "step_length": 0.5, "decay": "constant"} | changes
        if "lr" in changes:
            del options["step_length"]
        settings = TuneSettings(**options)  # type: ignore[arg-type]
        super().__init__(settings, ChosenScale(settings, sensitive_count=4))

    def at(self, step: int, g: float) -> StepSize:
        return self.next(step, Sample.of([g], math.nan, math.nan, 1.0))


def test_a_constant_rate_is_the_papers() -> None:
    sizes = [Schedule(lr=0.25).at(step, g) for step, g in enumerate([1.0, -300.0, 0.0])]
    assert [size.lr for size in sizes] == [0.25, 0.25, 0.25]


def test_auto_makes_a_typical_step_as_long_as_asked() -> None:
    """|g| = 8 always, k = 4: η = 0.5 / (√4 · 8) = 1/32, so ‖η·g·z‖ ≈ 1/32 · 8 · √4 = 0.5."""
    auto = Schedule()
    assert [auto.at(step, 8.0 * (-1) ** step).lr for step in range(5)] == pytest.approx([1 / 32] * 5, rel=1e-6)


def test_auto_is_blind_to_the_scale_of_g() -> None:
    gradients = [0.3, -1.2, 0.8, 2.0, -0.1]
    one, thousand = Schedule(), Schedule()
    steps_one = [one.at(t, g).lr * g for t, g in enumerate(gradients)]
    steps_thousand = [thousand.at(t, 1000 * g).lr * 1000 * g for t, g in enumerate(gradients)]
    assert steps_one == pytest.approx(steps_thousand, rel=1e-6)


def test_the_running_rms_is_bias_corrected() -> None:
    """After g = 3 and g = 1: (0.98·0.02·9 + 0.02·1) / (1 − 0.98²) = 0.1964 / 0.0396."""
    auto = Schedule()
    auto.at(0, 3.0)
    assert auto.at(1, 1.0).lr == pytest.approx(0.25 / math.sqrt(0.1964 / 0.0396), rel=1e-6)


def test_linear_decay_ends_at_nothing() -> None:
    linear = Schedule(lr=1.0, decay="linear", steps=4)
    assert [linear.at(step, 1.0).lr for step in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_an_outlier_is_clipped_to_a_multiple_of_the_median() -> None:
    clipping = Schedule(lr=1.0, clip_multiple=5.0)
    for step in range(MEDIAN_WARMUP):
        assert clipping.at(step, 2.0).is_clipped is False
    outlier = clipping.at(MEDIAN_WARMUP, -100.0)
    assert outlier.is_clipped
    assert outlier.lr * 100.0 == pytest.approx(5.0 * 2.0)
    assert clipping.at(MEDIAN_WARMUP + 1, 10.0).is_clipped is False


def test_nothing_is_clipped_before_a_median_is_known() -> None:
    early = Schedule(lr=1.0)
    assert not any(early.at(step, 10.0**step).is_clipped for step in range(MEDIAN_WARMUP))


@pytest.mark.parametrize("gradient", [math.nan, math.inf])
def test_a_step_without_g_moves_nothing_and_is_forgotten(gradient: float) -> None:
    one, other = Schedule(), Schedule()
    for step in range(30):
        one.at(step, 1.0 + step % 3)
        other.at(step, 1.0 + step % 3)
    assert one.at(30, gradient).lr == 0.0
    assert one.at(31, 2.0) == other.at(31, 2.0)


def test_no_gradient_at_all_moves_nothing() -> None:
    assert Schedule().at(0, 0.0).lr == 0.0


def test_every_rate_is_exact_in_float32() -> None:
    auto = Schedule()
    rates = [auto.at(step, 0.1 + step).lr for step in range(40)]
    assert rates == [float(np.float32(rate)) for rate in rates]


def test_the_state_follows_from_the_gradients_alone() -> None:
    gradients = [math.sin(step) * 10 for step in range(200)]
    live, rebuilt = Schedule(), Schedule()
    sizes = [live.at(step, g) for step, g in enumerate(gradients)]
    assert [rebuilt.at(step, g) for step, g in enumerate(gradients)] == sizes
