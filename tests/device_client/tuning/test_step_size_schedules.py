"""Learning rates worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from device_client.tuning.schedules import MEDIAN_WARMUP, StepSizeSchedule, parse_lr
from shared.errors import InvalidRequest


def schedule(**changes: object) -> StepSizeSchedule:
    options: dict[str, object] = {"steps": 100, "lr": None, "step_length": 0.5, "sensitive_count": 4} | changes
    return StepSizeSchedule(**options)  # type: ignore[arg-type]


def test_a_constant_rate_is_the_papers() -> None:
    sizes = [schedule(lr=0.25).next(step, [g]) for step, g in enumerate([1.0, -300.0, 0.0])]
    assert [size.lr for size in sizes] == [0.25, 0.25, 0.25]


def test_auto_makes_a_typical_step_as_long_as_asked() -> None:
    """|g| = 8 always, k = 4: η = 0.5 / (√4 · 8) = 1/32, so ‖η·g·z‖ ≈ 1/32 · 8 · √4 = 0.5."""
    auto = schedule()
    assert [auto.next(step, [8.0 * (-1) ** step]).lr for step in range(5)] == pytest.approx([1 / 32] * 5, rel=1e-6)


def test_auto_is_blind_to_the_scale_of_g() -> None:
    gradients = [0.3, -1.2, 0.8, 2.0, -0.1]
    one, thousand = schedule(), schedule()
    steps_one = [one.next(t, [g]).lr * g for t, g in enumerate(gradients)]
    steps_thousand = [thousand.next(t, [1000 * g]).lr * 1000 * g for t, g in enumerate(gradients)]
    assert steps_one == pytest.approx(steps_thousand, rel=1e-6)


def test_the_running_rms_is_bias_corrected() -> None:
    """After g = 3 and g = 1: (0.98·0.02·9 + 0.02·1) / (1 − 0.98²) = 0.1964 / 0.0396."""
    auto = schedule()
    auto.next(0, [3.0])
    assert auto.next(1, [1.0]).lr == pytest.approx(0.25 / math.sqrt(0.1964 / 0.0396), rel=1e-6)


def test_linear_decay_ends_at_nothing() -> None:
    linear = schedule(lr=1.0, decay="linear", steps=4)
    assert [linear.next(step, [1.0]).lr for step in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_an_outlier_is_clipped_to_a_multiple_of_the_median() -> None:
    clipping = schedule(lr=1.0, clip_multiple=5.0)
    for step in range(MEDIAN_WARMUP):
        assert clipping.next(step, [2.0]).is_clipped is False
    outlier = clipping.next(MEDIAN_WARMUP, [-100.0])
    assert outlier.is_clipped
    assert outlier.lr * 100.0 == pytest.approx(5.0 * 2.0)
    assert clipping.next(MEDIAN_WARMUP + 1, [10.0]).is_clipped is False


def test_nothing_is_clipped_before_a_median_is_known() -> None:
    early = schedule(lr=1.0)
    assert not any(early.next(step, [10.0**step]).is_clipped for step in range(MEDIAN_WARMUP))


@pytest.mark.parametrize("gradient", [math.nan, math.inf])
def test_a_step_without_g_moves_nothing_and_is_forgotten(gradient: float) -> None:
    one, other = schedule(), schedule()
    for step in range(30):
        one.next(step, [1.0 + step % 3])
        other.next(step, [1.0 + step % 3])
    assert one.next(30, [gradient]).lr == 0.0
    assert one.next(31, [2.0]) == other.next(31, [2.0])


def test_no_gradient_at_all_moves_nothing() -> None:
    assert schedule().next(0, [0.0]).lr == 0.0


def test_every_rate_is_exact_in_float32() -> None:
    auto = schedule()
    rates = [auto.next(step, [0.1 + step]).lr for step in range(40)]
    assert rates == [float(np.float32(rate)) for rate in rates]


def test_the_state_follows_from_the_gradients_alone() -> None:
    gradients = [math.sin(step) * 10 for step in range(200)]
    live, rebuilt = schedule(), schedule()
    sizes = [live.next(step, [g]) for step, g in enumerate(gradients)]
    assert [rebuilt.next(step, [g]) for step, g in enumerate(gradients)] == sizes


@pytest.mark.parametrize(("text", "lr"), [("auto", None), ("1e-6", 1e-6), ("0", 0.0)])
def test_lr_is_auto_or_a_number(text: str, lr: float | None) -> None:
    assert parse_lr(text) == lr


@pytest.mark.parametrize("text", ["", "fast", "-1e-6", "nan", "inf"])
def test_any_other_lr_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="--lr"):
        parse_lr(text)
