"""ε and η for objectives without a curvature: shares of the values' size."""

from __future__ import annotations

import math

import pytest

from device_client.tuning.measurements import Sample
from device_client.tuning.metric_step import WALK_SHARE, MetricStep
from device_client.tuning.schedules import StepSizeSchedule
from device_client.tuning.settings import TuneSettings

SETTINGS = TuneSettings(metric="accuracy", steps=100, decay="constant", epsilon=0.01)


def schedule_of(settings: TuneSettings = SETTINGS) -> StepSizeSchedule:
    return StepSizeSchedule(settings, MetricStep(settings, value_rms=0.2))


def test_a_walk_of_all_steps_moves_each_value_by_a_share_of_the_values_size() -> None:
    """Of a constant g each step is η·g·z; 100 of them in random directions come to √100 · η·g per value."""
    sizes = [schedule_of().next(0, Sample(3.0 * 3.0)).lr]
    assert sizes[0] * 3.0 * math.sqrt(100) == pytest.approx(WALK_SHARE * 0.2)


def test_steps_that_see_no_difference_make_the_others_longer_so_that_the_walk_is_as_long() -> None:
    schedule = schedule_of(TuneSettings(metric="accuracy", steps=4000, decay="constant"))
    moved = 0.0
    for step in range(4000):
        gradient = 2.0 if step % 4 == 0 else 0.0
        moved += (schedule.next(step, Sample(gradient * gradient)).lr * gradient) ** 2
    assert math.sqrt(moved) == pytest.approx(WALK_SHARE * 0.2, rel=0.1)


def test_nothing_moves_before_a_difference_was_seen() -> None:
    schedule = schedule_of()
    assert [schedule.next(step, Sample(0.0 * 0.0)).lr for step in range(3)] == [0.0, 0.0, 0.0]
    assert schedule.next(3, Sample(1.0 * 1.0)).lr > 0


def test_it_measures_no_curvature_and_goes_back_nowhere() -> None:
    scale = MetricStep(SETTINGS, value_rms=0.2)
    assert not scale.wants_curvature(0)
    assert not scale.validated(-0.9)
    assert not scale.validated(-0.1)
    assert scale.epsilon == 0.01
