"""A coverage measurement as JSON for programs, a table for a terminal, and one self-contained HTML page for people.

The page holds its pictures as inline SVG and loads nothing from anywhere. Knows nothing about how it was measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cloud_service.pipeline.report.page_template import render_page
from cloud_service.pipeline.report.svg_figure import inline_svg, svg_file
from cloud_service.studies.coverage import CRITERIA, Coverage, Criterion, Moment
from cloud_service.studies.coverage_pictures import start_picture, step_picture, whole_picture


def coverage_document(coverage: Coverage, about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of coverage.json.

    Args:
        coverage: What was measured.
        about: What it was measured on, JSON-ready: model, text, task, rows and settings.
    """
    return {
        **about,
        "fractions": list(coverage.fractions),
        "tensors": coverage.tensor_count,
        "weights": coverage.weight_count,
        "moments": [_moment_document(moment) for moment in coverage.moments],
    }


def criterion_labels(text: str, task: str) -> dict[Criterion, str]:
    """Return what each criterion is called, for a text and a task of those names."""
    return {
        "text_static": f"{text} gradients, static",
        "task_static": f"{task} gradients, static",
        "task_dynamic": f"{task} gradients, at this step",
        "in_sample": "the measured rows' own gradients",
        "magnitude": "largest weights",
        "random": "random",
    }


def coverage_table(document: Mapping[str, Any]) -> str:
    """Return the shares of the first and, where there is one, the last moment as lines of text."""
    first, last = document["moments"][0], document["moments"][-1]
    parts = [_moment_table(document, first)]
    if last is not first:
        parts.append(_moment_table(document, last))
    return "\n\n".join(parts)


def coverage_picture(coverage: Coverage, labels: Mapping[Criterion, str]) -> bytes:
    """Return coverage.svg: Figure 3 where steps were taken, else the shares at the start."""
    return svg_file(whole_picture(coverage, labels), "coverage")


def coverage_page(document: Mapping[str, Any], coverage: Coverage, labels: Mapping[Criterion, str]) -> bytes:
    """Return coverage.html."""
    start = start_picture(coverage, labels)
    has_steps = len(coverage.moments) > 1
    return render_page(
        "coverage.html",
        report=document,
        labels=labels,
        criteria=CRITERIA,
        start=inline_svg(start, "start", "Covered shares at the start against the fraction"),
        steps=[_step_section(coverage, index, labels) for index in range(len(coverage.fractions)) if has_steps],
    )


def _step_section(coverage: Coverage, index: int, labels: Mapping[Criterion, str]) -> dict[str, Any]:
    fraction = coverage.fractions[index]
    picture = inline_svg(
        step_picture(coverage, index, labels), f"steps-{index}", f"Shares of the top {fraction:g} against the step"
    )
    return {"fraction": fraction, "picture": picture}


def _moment_document(moment: Moment) -> dict[str, Any]:
    return {
        "step": moment.step,
        "loss_nats_per_token": moment.loss,
        "shares": {
            criterion: [{"mean": share.mean, "std": share.std} for share in shares]
            for criterion, shares in moment.shares.items()
        },
        "overlaps": [{"masks": list(pair), "overlap": list(values)} for pair, values in moment.overlaps.items()],
        "text_over_task_static": [
            _ratio(text.mean, task.mean)
            for text, task in zip(moment.shares["text_static"], moment.shares["task_static"], strict=True)
        ],
    }


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator else None


def _moment_table(document: Mapping[str, Any], moment: Mapping[str, Any]) -> str:
    labels = criterion_labels(document["text"], document["task"])
    width = max(map(len, labels.values()))
    title = f"step {moment['step']}, loss {moment['loss_nats_per_token']:.4f}".ljust(width)
    lines = [title + "".join(f"{f'top {fraction:g}':>12}" for fraction in document["fractions"])]
    for criterion in CRITERIA:
        shares = "".join(f"{100 * share['mean']:>10.2f} %" for share in moment["shares"][criterion])
        lines.append(labels[criterion].ljust(width) + shares)
    return "\n".join(lines)
