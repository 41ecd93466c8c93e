"""The loss curve: an SVG picture, and a line of block letters for the terminal.

The picture depends on the numbers alone (fixed identifiers, no date), so the same run draws the same bytes.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

_BLOCKS = "▁▂▃▄▅▆▇█"
SMOOTHING = 0.98


def moving_average(values: Sequence[float], decay: float = SMOOTHING) -> list[float]:
    """Return the bias-corrected exponential moving average; values that are not finite leave it as it is."""
    averages, total, weight = [], 0.0, 0.0
    for value in values:
        if math.isfinite(value):
            total = decay * total + (1 - decay) * value
            weight = decay * weight + (1 - decay)
        averages.append(total / weight if weight else math.nan)
    return averages


def sparkline(values: Sequence[float], width: int = 60) -> str:
    """Return the finite values as one line of blocks, lowest to highest, at most ``width`` letters."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    width = min(width, len(finite))
    low, high = min(finite), max(finite)
    picked = [finite[index * len(finite) // width] for index in range(width - 1)] + [finite[-1]]
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BLOCKS[round((value - low) * scale)] for value in picked)


def draw_curve(
    training: Sequence[float], validation: Sequence[tuple[int, float]], what: str = "loss, nats per answer"
) -> bytes:
    """Return the SVG of the training rows' loss or metric (moving average) and the validation rows' against steps.

    Args:
        training: Of each step, mean of both signs.
        validation: (steps done, loss or metric).
        what: Name of the vertical axis.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "zo-device", "svg.fonttype": "none"}):
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.add_subplot()
        if training:
            axes.plot(range(1, len(training) + 1), moving_average(training), label="training, moving average", lw=1)
        if validation:
            axes.plot(*zip(*validation, strict=True), "o-", label="validation", ms=3)
        axes.set_xlabel("steps")
        axes.set_ylabel(what)
        if training or validation:
            axes.legend()
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": "zo-device"})
    return buffer.getvalue()
