"""The verdict: each threshold from both sides, and never a gate."""

from __future__ import annotations

import pytest
from example_report import example_report

from cloud_service.pipeline.report.verdict import judge, outliers


@pytest.mark.parametrize(
    ("increase", "level"), [(-0.01, "good"), (0.0499, "good"), (0.0501, "look"), (0.149, "look"), (0.151, "poor")]
)
def test_perplexity_is_judged_by_its_relative_increase(increase: float, level: str) -> None:
    verdict = judge(example_report(increase=increase))
    assert verdict.findings[0].level == level
    assert verdict.level == level


@pytest.mark.parametrize(("overlap", "level"), [(0.6, "good"), (0.59, "look"), (0.25, "look"), (0.24, "poor")])
def test_the_overlap_is_judged_by_how_steady_the_mask_is(overlap: float, level: str) -> None:
    assert judge(example_report(overlap=overlap)).findings[1].level == level


def test_a_mask_without_overlap_is_not_judged_by_it() -> None:
    assert len(judge(example_report(overlap=None)).findings) == 2


def test_a_weight_far_off_the_others_is_named() -> None:
    finding = judge(example_report(worst=0.05)).findings[-1]
    assert finding.level == "look"
    assert "model.layers.0.self_attn.q_proj.weight (10.0 times)" in finding.text


def test_outliers_are_counted_in_medians_and_the_worst_comes_first() -> None:
    errors = {"a": 1.0, "b": 1.0, "c": 4.0, "d": 4.5, "e": 9.0, "f": 1.0, "g": 1.0}
    assert list(outliers(errors).items()) == [("e", 9.0), ("d", 4.5)]
    assert outliers({"a": 0.0, "b": 0.0}) == {}
    assert outliers({}) == {}


def test_the_headline_counts_what_to_look_at() -> None:
    assert judge(example_report()).headline == "Fit to ship."
    assert judge(example_report(overlap=0.5)).headline == "Look at one point before shipping."
    assert judge(example_report(overlap=0.5, increase=0.1)).headline == "Look at 2 points before shipping."
    assert judge(example_report(increase=0.5)).headline == "Better not shipped as it is."


def test_without_perplexity_nothing_is_called_fit() -> None:
    assert judge(example_report(increase=None)).level == "unknown"
