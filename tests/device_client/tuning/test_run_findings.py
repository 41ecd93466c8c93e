"""What records say, counted by hand."""

from __future__ import annotations

import math

import pytest

from device_client.tuning.journal import StepFlags, StepRecord
from device_client.tuning.run_findings import forward_passes, measured
from device_client.tuning.settings import TuneSettings

RECORDS = [
    StepRecord(0, 0.01, 1.0, StepFlags.NONE, (2.0, 4.0), signal=4.0, curvature=6.0),
    StepRecord(1, 0.03, 1.0, StepFlags.NONE, (5.0, 5.0), signal=6.0),
    StepRecord(2, 0.0, 1.0, StepFlags.SKIPPED, (math.nan, 1.0)),
]


@pytest.mark.parametrize(("directions", "passes"), [("two-sided", 5 + 4 + 4), ("one-sided", 5 + 2 + 2)])
def test_a_step_that_measures_curvature_has_two_sides_and_one_pass_more(directions: str, passes: int) -> None:
    settings = TuneSettings(queries=2, directions=directions)  # type: ignore[arg-type]
    assert forward_passes(RECORDS, settings) == passes


def test_what_was_measured_is_the_mean_over_the_steps_that_were_not_skipped() -> None:
    """V = (10 + 25)/2, s = 5, f = (4·10 − 3·4 + 4·25 − 3·6)/2, mean η = 0.02: 0.02·5 − 4e-4·17.5·55/4."""
    found = measured(RECORDS, TuneSettings(queries=2, batch_size=4))
    assert found["signal_share"] == pytest.approx(5 / 17.5)
    assert found["curvature"] == pytest.approx(55)
    assert found["useful_batch"] == pytest.approx(4 * 2.5)
    assert found["expected_fall_per_step"] == pytest.approx(0.1 - 0.09625)


def test_a_run_without_steps_found_nothing() -> None:
    assert set(measured([], TuneSettings()).values()) == {None}
