"""The report's two pictures: how concentrated the gradient is, and the quantisation error along the blocks.

Both come with a sentence that says the same in words. Knows nothing about the page around them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from cloud_service.pipeline.report.block_grid import block_grid
from cloud_service.pipeline.report.svg_figure import (
    INK,
    SERIES_COLORS,
    SERIES_MARKERS,
    add_legend,
    inline_svg,
    new_drawing,
)

_TOLD_FRACTIONS = (0.001, 0.01, 0.1)


def mass_curve_picture(report: Mapping[str, Any]) -> str:
    """Return Figure 2 of the paper for this model as an ``<svg>`` element."""
    curve = report["gradient_mass_curve"]
    fractions, mean, std = (np.array(curve[key]) for key in ("fractions", "mean", "std"))
    drawing = new_drawing()
    axes, color = drawing.axes, SERIES_COLORS[0]
    low, high = np.clip(mean - std, 0, 1), np.clip(mean + std, 0, 1)
    axes.fill_between(100 * fractions, 100 * low, 100 * high, color=color, alpha=0.25, linewidth=0)
    axes.plot(100 * fractions, 100 * mean, color=color, label="mean ± std over weights")
    axes.axvline(100 * report["mask"]["sparsity"], color=INK, linestyle="--", label="this mask's sparsity")
    axes.set(xscale="log", ylim=(0, 101), xlabel="% of weights, largest first", ylabel="% of gradient mass")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    add_legend(drawing, loc="upper left")
    return inline_svg(drawing, "curve", _curve_in_words(fractions, mean))


def error_picture(report: Mapping[str, Any]) -> str:
    """Return the weighted error of every weight, one line per projection along the blocks, as an ``<svg>`` element."""
    grid = block_grid({row["name"]: 100 * row["weighted_relative_error"] for row in report["tensors"]})
    drawing = new_drawing()
    blocks = [block for block, _ in grid.rows]
    for position, projection in enumerate(grid.projections):
        style = position % len(SERIES_COLORS)
        drawing.axes.plot(
            blocks,
            [np.nan if value is None else value for value in grid.column(projection)],
            color=SERIES_COLORS[style],
            marker=SERIES_MARKERS[style],
            markersize=3.5 if len(blocks) < 20 else 2.5,
            linewidth=1,
            label=projection,
        )
    drawing.axes.set(xlabel="block", ylabel="weighted error, % of Σ F·W²", ylim=(0, None))
    drawing.axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    add_legend(
        drawing, ncols=max(1, len(grid.projections)), loc="outside upper center", handlelength=1, columnspacing=1
    )
    return inline_svg(drawing, "errors", _errors_in_words(report["tensors"]))


def _curve_in_words(fractions: np.ndarray[Any, Any], mean: np.ndarray[Any, Any]) -> str:
    parts = [
        f"the largest {100 * fraction:g} % hold {100 * float(np.interp(fraction, fractions, mean)):.0f} %"
        for fraction in _TOLD_FRACTIONS
    ]
    return f"Curve of gradient mass over weights sorted by size: on average {', '.join(parts)} of a weight's mass."


def _errors_in_words(rows: list[dict[str, Any]]) -> str:
    ordered = sorted(rows, key=lambda row: float(row["weighted_relative_error"]))
    low, high = ordered[0], ordered[-1]
    return (
        f"Weighted quantisation error per block and projection, between {low['weighted_relative_error']:.4f} "
        f"({low['name']}) and {high['weighted_relative_error']:.4f} ({high['name']}); the table below has every figure."
    )
