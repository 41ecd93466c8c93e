"""What is made of runs that were compared: passes counted, the mark reached, curves drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from runtime.tuning_curves import draw_tuning_curves
from tuning_methods import headlines, passes_to
from tuning_runs import measured_steps, passes_of

CIRCUMSTANCES = {"machine": "a machine", "threads": 2, "torch": "2.13", "date": "2026-11-30"}


def run(method: str, passes: int, losses: list[float], seed: int = 0) -> dict[str, Any]:
    points = [
        {"passes": passes * index // (len(losses) - 1), "seconds": 9.0 * index, "loss": loss, "accuracy": 0.5}
        for index, loss in enumerate(losses)
    ]
    figures = {"loss": losses[-1], "accuracy": 0.8}
    test = {"best": figures, "calibrated_zero_shot": {"loss": 0.6, "accuracy": 0.7}, "in_context": figures}
    return {"method": method, "passes": passes, "seed": seed, "test": test, "curve": points}


@pytest.mark.parametrize("passes", [20, 100, 400, 1600])
def test_a_measured_run_spends_the_passes_it_may_and_no_more(passes: int) -> None:
    steps = measured_steps(passes)
    assert passes_of(steps) <= passes < passes_of(steps + 1)


def test_the_first_steps_measure_curvature_with_a_third_pass() -> None:
    """Eight of the first 16 steps, then one in 16."""
    assert [passes_of(steps) for steps in (1, 8, 16, 17)] == [3, 24, 40, 43]


def test_the_mark_is_reached_by_the_first_validation_as_low() -> None:
    runs = [run("zo", 400, [1.0, 0.5]), run("zo", 1600, [1.0, 0.4, 0.2]), run("zo_upper", 400, [1.0, 0.1])]
    assert passes_to(0.4, runs, seed=0) == 800
    assert passes_to(0.15, runs, seed=0) is None
    assert passes_to(0.4, runs, seed=1) is None


def test_headlines_are_means_over_the_seeds() -> None:
    runs = [run("zo", 400, [1.0, 0.5]), run("zo", 400, [1.0, 0.3], seed=1)]
    marks = [run("first_order", 240, [1.0, 0.5]), run("first_order", 240, [1.0, 0.3], seed=1)]
    found = dict(headlines(runs, marks))
    assert found["loss.zo.400"] == (pytest.approx(0.4), "nats after 400 passes, 2 seeds")
    assert found["passes_to_loss_of_first_order_240"] == (pytest.approx(400 / 240), "times as many")


def test_curves_are_drawn_as_svg_and_png(tmp_path: Path) -> None:
    runs = [run("zo", 400, [1.0, 0.6, 0.5]), run("first_order", 400, [1.0, 0.3]), {"method": "zo", "diverged": True}]
    found = {"task": "SST-2", "dtype": "float32", "measured": CIRCUMSTANCES, "runs": runs}
    path = tmp_path / "tuning_methods.json"
    path.write_text(json.dumps({"parts": {"sst2": found}}))
    assert [picture.name for picture in draw_tuning_curves(path)] == ["tuning_sst2.svg", "tuning_sst2.png"]
    assert b"zeroth order" in (tmp_path / "tuning_sst2.svg").read_bytes()
