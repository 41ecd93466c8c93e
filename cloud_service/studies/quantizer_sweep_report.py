"""A sweep of quantisers as JSON for programs, a table for a terminal, a plot, and one self-contained page for people.

    plot    perplexity against stored bits per weight, one line per method; the 16-bit model as a level

Knows nothing about how anything was measured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from cloud_service.pipeline.report.page_template import readable_seconds, render_page
from cloud_service.pipeline.report.svg_figure import (
    INK,
    SERIES_COLORS,
    SERIES_MARKERS,
    Drawing,
    add_legend,
    inline_svg,
    new_drawing,
    svg_file,
)
from cloud_service.studies.quantizer_sweep import Combination, Sweep

_HEADS = ("quantiser", "bits stored", "perplexity", "against 16 bit", "without sensitive", "weighted error", "time")
_LOGARITHMIC_FROM = 2.0
_CLOSE_SHARE = 0.3
_WIDEST_BITS = 16.0
"""What stores more per weight gains nothing (codebooks of short rows do) and is left out of the plot."""


def sweep_document(sweep: Sweep) -> dict[str, Any]:
    """Return the content of quantizers.json."""
    return {
        **sweep.about,
        "perplexity_16bit": sweep.perplexity_16bit,
        "combinations": [dataclasses.asdict(combination) for combination in sweep.combinations],
    }


def sweep_table(sweep: Sweep) -> str:
    """Return the combinations as lines of text."""
    rows = [_HEADS, *(table_row(combination, sweep.perplexity_16bit) for combination in sweep.combinations)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADS))]
    lines = ["  ".join(_padded(row, widths)) for row in rows]
    return "\n".join([*lines, f"16 bit: perplexity {sweep.perplexity_16bit:.3f}"])


def table_row(combination: Combination, perplexity_16bit: float) -> tuple[str, ...]:
    """Return one line of the table, as text."""
    return (
        f"{series_name(combination)} {combination.bits} bit",
        f"{combination.bits_stored:.3f}",
        f"{combination.perplexity:.3f}",
        f"{100 * (combination.perplexity / perplexity_16bit - 1):+.2f} %",
        f"{combination.perplexity_dense_only:.3f}",
        f"{100 * combination.weighted_error:.3f} %",
        readable_seconds(combination.seconds),
    )


def series_name(combination: Combination) -> str:
    """Return what combinations of one line in the plot have in common, for example ``uniform g64 gptq``."""
    group = None if combination.group_size is None else f"g{combination.group_size}"
    compensation = None if combination.compensation == "none" else combination.compensation
    return " ".join(part for part in (combination.method, group, compensation) if part)


def sweep_picture(sweep: Sweep, *, is_close_up: bool = False) -> Drawing:
    """Return the plot; the close-up shows only what lies near the 16-bit model."""
    drawing = new_drawing(5.2, 3.8)
    series: dict[str, list[Combination]] = {}
    for combination in sweep.combinations:
        series.setdefault(series_name(combination), []).append(combination)
    for position, (name, points) in enumerate(series.items()):
        _draw_series(drawing, name, sorted(points, key=lambda one: one.bits_stored), position)
    drawing.axes.axhline(sweep.perplexity_16bit, color=INK, linestyle=":", linewidth=1.2, label="16 bit")
    drawing.axes.set(xlim=_bits_range(sweep), xlabel="stored bits per weight", ylabel="perplexity")
    if is_close_up:
        lowest = min(sweep.perplexity_16bit, *(one.perplexity for one in sweep.combinations))
        drawing.axes.set_ylim(lowest - 0.02 * sweep.perplexity_16bit, (1 + _CLOSE_SHARE) * sweep.perplexity_16bit)
    elif _spans_orders(sweep):
        drawing.axes.set_yscale("log")
        drawing.axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        drawing.axes.yaxis.set_minor_formatter(lambda _value, _: "")
    add_legend(drawing, loc="outside upper center", ncols=3, handlelength=2, columnspacing=1.2)
    return drawing


def sweep_svg(sweep: Sweep) -> bytes:
    """Return quantizers.svg."""
    return svg_file(sweep_picture(sweep), "quantizers")


def sweep_page(sweep: Sweep) -> bytes:
    """Return quantizers.html."""
    return render_page(
        "quantizers.html",
        about=sweep.about,
        heads=_HEADS,
        rows=[table_row(combination, sweep.perplexity_16bit) for combination in sweep.combinations],
        perplexity_16bit=sweep.perplexity_16bit,
        smallest=smallest_close_to_16bit(sweep),
        series_name=series_name,
        picture=inline_svg(sweep_picture(sweep), "quantizers", _in_words(sweep)),
        close_up=_close_up(sweep) if _spans_orders(sweep) else None,
    )


def smallest_close_to_16bit(sweep: Sweep, share: float = 0.05) -> Combination | None:
    """Return the combination of fewest stored bits whose perplexity is at most ``share`` over 16 bits, or None."""
    close = [one for one in sweep.combinations if one.perplexity <= (1 + share) * sweep.perplexity_16bit]
    return min(close, key=lambda one: (one.bits_stored, one.perplexity), default=None)


def _bits_range(sweep: Sweep) -> tuple[float, float]:
    useful = [one.bits_stored for one in sweep.combinations if one.bits_stored <= _WIDEST_BITS] or [_WIDEST_BITS]
    return min(useful) - 0.5, max(useful) + 0.5


def _spans_orders(sweep: Sweep) -> bool:
    shown = [value for one in sweep.combinations for value in (one.perplexity, one.perplexity_dense_only)]
    return max(shown) > _LOGARITHMIC_FROM * sweep.perplexity_16bit


def _close_up(sweep: Sweep) -> str:
    words = f"The same plot up to {_CLOSE_SHARE:.0%} over the 16-bit perplexity."
    return inline_svg(sweep_picture(sweep, is_close_up=True), "close-up", words)


def _draw_series(drawing: Drawing, name: str, points: Sequence[Combination], position: int) -> None:
    style = position % len(SERIES_COLORS)
    look: dict[str, Any] = {
        "color": SERIES_COLORS[style],
        "marker": SERIES_MARKERS[style],
        "markersize": 5,
        "linewidth": 1.4,
    }
    drawing.axes.plot([p.bits_stored for p in points], [p.perplexity for p in points], label=name, **look)
    faint = look | {"linestyle": "--", "linewidth": 0.9, "markerfacecolor": "none", "alpha": 0.8}
    label = "without sensitive" if position == 0 else "_nolegend_"
    drawing.axes.plot([p.bits_dense for p in points], [p.perplexity_dense_only for p in points], label=label, **faint)


def _padded(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))]  # fmt: skip


def _in_words(sweep: Sweep) -> str:
    best = min(sweep.combinations, key=lambda one: one.perplexity)
    return (
        f"Perplexity against stored bits per weight, one line per method; 16 bit is {sweep.perplexity_16bit:.2f}, the "
        f"lowest of the quantised ones {best.perplexity:.2f} ({series_name(best)}, {best.bits} bit). "
        "The table below has every figure."
    )
