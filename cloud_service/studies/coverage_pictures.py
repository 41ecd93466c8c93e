"""Pictures of covered shares: at the start against the fraction, and against the step as Figure 3 draws them.

Knows nothing about pages or files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator

from cloud_service.pipeline.report.svg_figure import (
    INK,
    SERIES_COLORS,
    SERIES_MARKERS,
    Drawing,
    add_legend,
    new_drawing,
)
from cloud_service.studies.coverage import CRITERIA, Coverage, Criterion, Moment

_LINES_OF_FIGURE_3: dict[Criterion, str] = {"text_static": "-", "task_static": "--", "in_sample": ":"}
_BELOW = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16)}
_SHARE = "% of the task's gradient mass"


def whole_picture(coverage: Coverage, labels: Mapping[Criterion, str]) -> Drawing:
    """Return Figure 3 where steps were taken, else the shares at the start.

    As there, the colour is the fraction and the line's style what chose the weights.
    """
    if len(coverage.moments) == 1:
        return start_picture(coverage, labels)
    drawing = new_drawing(6.4, 4.6)
    for index, color in enumerate(SERIES_COLORS[: len(coverage.fractions)]):
        for criterion, style in _LINES_OF_FIGURE_3.items():
            _draw_steps(drawing.axes, coverage.moments, criterion, index, color=color, linestyle=style)
    _label_steps(drawing.axes)
    styles = [Line2D([], [], color=INK, linestyle=s, label=labels[c]) for c, s in _LINES_OF_FIGURE_3.items()]
    colors = [
        Line2D([], [], color=color, linewidth=4, label=f"top {100 * fraction:g} %")
        for fraction, color in zip(coverage.fractions, SERIES_COLORS, strict=False)
    ]
    add_legend(drawing, handles=[*styles, *colors], ncols=2, **_BELOW)
    return drawing


def start_picture(coverage: Coverage, labels: Mapping[Criterion, str]) -> Drawing:
    """Return the shares at the start against the fraction, on logarithmic axes: the diagonal is a random choice."""
    drawing = new_drawing(4.8, 5.0)
    moment = coverage.moments[0]
    for number, criterion in enumerate(CRITERIA):
        if criterion != "task_dynamic":  # at the start it is task_static
            drawing.axes.plot(
                [100 * fraction for fraction in coverage.fractions],
                [100 * share.mean for share in moment.shares[criterion]],
                color=SERIES_COLORS[number], marker=SERIES_MARKERS[number], label=labels[criterion],
            )  # fmt: skip
    drawing.axes.set(xscale="log", yscale="log", ylim=(None, 105), xlabel="% of each linear weight", ylabel=_SHARE)
    for axis in (drawing.axes.xaxis, drawing.axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_minor_locator(NullLocator())
    add_legend(drawing, **_BELOW)
    return drawing


def step_picture(coverage: Coverage, index: int, labels: Mapping[Criterion, str]) -> Drawing:
    """Return the shares of all criteria at one fraction against the step."""
    drawing = new_drawing(4.8, 4.9)
    for number, criterion in enumerate(CRITERIA):
        _draw_steps(
            drawing.axes, coverage.moments, criterion, index,
            color=SERIES_COLORS[number], marker=SERIES_MARKERS[number], label=labels[criterion],
        )  # fmt: skip
    _label_steps(drawing.axes)
    add_legend(drawing, **_BELOW)
    return drawing


def _draw_steps(axes: Axes, moments: Sequence[Moment], criterion: Criterion, index: int, **style: Any) -> None:
    shares = [100 * moment.shares[criterion][index].mean for moment in moments]
    axes.plot([moment.step for moment in moments], shares, **style)


def _label_steps(axes: Axes) -> None:
    axes.set(ylim=(0, None), xlabel="step of first-order fine-tuning", ylabel=_SHARE)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
