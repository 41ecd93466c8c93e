"""Whether a bundle looks fit to ship, in words: advice to the operator, never a gate.

    perplexity    how much worse the bundle predicts held-out text than the 16-bit model
    overlap       how steadily the sensitive weights were found: the agreement of two halves of the calibration
    outliers      weights whose quantisation error is far off the others'

Each judgement states its thresholds and where they come from. Knows nothing about HTML.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from cloud_service.pipeline.report.page_template import percent

Level = Literal["good", "look", "poor", "unknown"]

SMALL_INCREASE = 0.05
"""Published 4-bit quantisers of Llama-2-7B raise WikiText-2 perplexity by 2 to 5 %."""

LARGE_INCREASE = 0.15

STEADY_OVERLAP = 0.6
UNSTEADY_OVERLAP = 0.25

OUTLIER_FACTOR = 4.0
_NAMED_OUTLIERS = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """One judgement.

    Attributes:
        level: How good it is.
        text: What was found.
        basis: The thresholds, and why these.
    """

    level: Level
    text: str
    basis: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """All judgements.

    Attributes:
        level: The worst that was found; ``unknown`` where perplexity was not measured and nothing else is wrong.
        headline: One sentence.
        findings: The judgements, perplexity first.
    """

    level: Level
    headline: str
    findings: tuple[Finding, ...]


def judge(report: Mapping[str, Any]) -> Verdict:
    """Return the verdict on the content of a report.json."""
    overlap = report["mask"]["split_half_overlap"]
    findings = (
        _judge_perplexity(report["perplexity"]),
        *((_judge_overlap(overlap, report["mask"]["sparsity"]),) if overlap is not None else ()),
        _judge_outliers({row["name"]: row["weighted_relative_error"] for row in report["tensors"]}),
    )
    levels = {finding.level for finding in findings}
    level: Level = next((worst for worst in ("poor", "look", "unknown") if worst in levels), "good")
    return Verdict(level, _headline(level, sum(finding.level != "good" for finding in findings)), findings)


def outliers(errors: Mapping[str, float]) -> dict[str, float]:
    """Return the weights whose error is more than ``OUTLIER_FACTOR`` medians, and how many medians; the worst first."""
    median = statistics.median(errors.values()) if errors else 0.0
    factors = {name: error / median for name, error in errors.items()} if median else {}
    far = {name: factor for name, factor in factors.items() if factor > OUTLIER_FACTOR}
    return dict(sorted(far.items(), key=lambda item: -item[1]))


def _headline(level: Level, open_points: int) -> str:
    points = "one point" if open_points == 1 else f"{open_points} points"
    return {
        "good": "Fit to ship.",
        "look": f"Look at {points} before shipping.",
        "poor": "Better not shipped as it is.",
        "unknown": "Not known: no perplexity was measured.",
    }[level]


def _judge_perplexity(perplexity: Mapping[str, Any] | None) -> Finding:
    basis = (
        f"Up to {percent(SMALL_INCREASE, 0)} is small: published 4-bit quantisers cost Llama-2-7B "
        f"2 to 5 % on WikiText-2. Over {percent(LARGE_INCREASE, 0)} is large."
    )
    if perplexity is None:
        return Finding("unknown", "Perplexity was not measured (evaluation.documents is 0).", basis)
    increase = perplexity["bundle"] / perplexity["16bit"] - 1
    level: Level = "good" if increase <= SMALL_INCREASE else "look" if increase <= LARGE_INCREASE else "poor"
    text = (
        f"Perplexity {'rises' if increase >= 0 else 'falls'} by {percent(abs(increase))}, "
        f"from {perplexity['16bit']:.2f} to {perplexity['bundle']:.2f}."
    )
    return Finding(level, text, basis)


def _judge_overlap(overlap: float, sparsity: float) -> Finding:
    basis = (
        f"Chance alone would give {percent(sparsity, 2)}. From {percent(STEADY_OVERLAP, 0)} the mask is steady "
        "(128 sequences gave 62 and 72 % on two small models); below that, one odd document may dominate a half, and "
        "more or other calibration sequences make it steadier; "
        f"below {percent(UNSTEADY_OVERLAP, 0)} it mostly reflects which texts were drawn."
    )
    steady, unsteady = overlap >= STEADY_OVERLAP, overlap < UNSTEADY_OVERLAP
    level: Level = "good" if steady else "poor" if unsteady else "look"
    return Finding(level, f"Two halves of the calibration agree on {percent(overlap)} of the sensitive weights.", basis)


def _judge_outliers(errors: Mapping[str, float]) -> Finding:
    basis = f"Far off means more than {OUTLIER_FACTOR:g} times the median of the weighted errors."
    far = outliers(errors)
    if not far:
        return Finding("good", "No weight's quantisation error is far off the others'.", basis)
    named = ", ".join(f"{name} ({factor:.1f} times)" for name, factor in list(far.items())[:_NAMED_OUTLIERS])
    more = f" and {len(far) - _NAMED_OUTLIERS} more" if len(far) > _NAMED_OUTLIERS else ""
    return Finding("look", f"Quantisation error far off the others': {named}{more}.", basis)
