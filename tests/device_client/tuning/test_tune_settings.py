"""What decides a run: defaults, contradictions, and the identity that runs of earlier releases have."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from imported_packages import imported_of

from device_client.planning.methods import MethodName
from device_client.tuning import settings
from device_client.tuning.settings import DEFAULTS, TuneSettings, parse_lr, parse_step
from shared.errors import InvalidRequest

EARLIER = {
    "steps": 2000, "batch_size": 16, "epsilon": 1e-3, "lr": None, "step_length": 0.8, "decay": "linear",
    "clip_multiple": 5.0, "queries": 1, "distribution": "gaussian", "seed": 0, "objective": "candidates",
    "validate_every": 100, "patience": None,
}  # fmt: skip


def test_reading_the_defaults_loads_no_torch() -> None:
    assert imported_of(Path(settings.__file__), "torch transformers") == []


def test_the_step_is_measured_unless_one_is_chosen() -> None:
    assert DEFAULTS.is_step_measured
    assert not TuneSettings(lr=0.0).is_step_measured
    assert not TuneSettings(step_length=0.8).is_step_measured


def test_a_run_with_a_chosen_step_has_the_identity_of_earlier_releases() -> None:
    assert TuneSettings(steps=2000, step_length=0.8).identity("candidates") == EARLIER
    assert TuneSettings(steps=2000, lr=1e-6).identity("candidates") == EARLIER | {"lr": 1e-6, "step_length": 0.07}


def test_one_sided_directions_make_another_run() -> None:
    found = TuneSettings(steps=2000, step_length=0.8, directions="one-sided", queries=4).identity("candidates")
    assert found == EARLIER | {"directions": "one-sided", "queries": 4}


def test_a_metric_and_what_judges_it_make_another_run() -> None:
    judged = {"metric": "checker", "answer_tokens": 8, "checker": "python3 check.py", "checker_digest": "sha256:0"}
    settings = TuneSettings(steps=2000, step_length=0.8, **judged)  # type: ignore[arg-type]
    assert settings.identity("candidates") == EARLIER | judged
    assert settings.identity(None) == EARLIER | judged | {"objective": None}
    relative = TuneSettings(steps=2000, step_length=0.8, metric="accuracy", epsilon_share=0.05).identity("candidates")
    assert relative == EARLIER | {"metric": "accuracy", "epsilon_share": 0.05}


def test_a_metrics_step_is_not_measured() -> None:
    settings = TuneSettings(metric="accuracy")
    assert settings.is_step_automatic
    assert not settings.is_step_measured


@pytest.mark.parametrize(("method", "numbers"), [("lora", {"rank": 8, "alpha": 16}), ("prefix", {"prefix_length": 5})])
def test_another_method_makes_another_run_that_names_its_numbers(
    method: MethodName, numbers: dict[str, object]
) -> None:
    found = TuneSettings(steps=2000, step_length=0.8, method=method).identity("candidates")
    assert found == EARLIER | numbers | {"method": method}


def test_two_steps_at_once_are_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"both --lr 1e-06 and --step 0\.8"):
        TuneSettings(lr=1e-6, step_length=0.8)


def test_one_sided_directions_need_something_to_compare_with() -> None:
    with pytest.raises(InvalidRequest, match="one direction per step") as caught:
        TuneSettings(directions="one-sided")
    assert caught.value.next_step == "--queries 4"


@pytest.mark.parametrize(("text", "length"), [("auto", None), ("0.8", 0.8), ("1e-3", 1e-3)])
def test_a_step_is_auto_or_a_length(text: str, length: float | None) -> None:
    assert parse_step(text) == length


@pytest.mark.parametrize("text", ["", "fast", "0", "-1", "nan", "inf"])
def test_any_other_step_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="auto, or a length above 0"):
        parse_step(text)


@pytest.mark.parametrize(("text", "lr"), [("1e-6", 1e-6), ("0", 0.0)])
def test_lr_is_a_number(text: str, lr: float) -> None:
    assert parse_lr(text) == lr


@pytest.mark.parametrize("text", ["", "auto", "-1e-6", "nan", "inf"])
def test_any_other_lr_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="a number from 0 on"):
        parse_lr(text)
