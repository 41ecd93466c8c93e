"""Draw validation losses of ways to tune, against forward passes and against seconds. Knows nothing about measuring."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from runtime.drawing import CSR, FUSED, SPARSE_ADD, save

METHODS = {
    "zo": ("zeroth order", SPARSE_ADD, "-"),
    "zo_upper": ("zeroth order, last third of the blocks", CSR, "--"),
    "first_order": ("first order", FUSED, ":"),
}


def draw_tuning_curves(path: Path) -> list[Path]:
    """Draw each task of a result file of ``tuning_methods``, beside it."""
    parts = json.loads(path.read_text())["parts"]
    drawn = [draw_task(found, path.parent / f"tuning_{task}") for task, found in parts.items()]
    return [picture for pictures in drawn for picture in pictures]


def draw_task(found: Mapping[str, Any], stem: Path) -> list[Path]:
    """Draw a line per run, one panel against passes and one against seconds; what its rows' prior explains beside them.

    Args:
        found: What was measured on a task.
        stem: The pictures' path without ending.
    """
    figure = Figure(figsize=(10.5, 4.6), layout="constrained")
    panels = dict(zip(("passes", "seconds"), figure.subplots(1, 2, sharey=True), strict=True))
    runs = [run for run in found["runs"] if "curve" in run]
    for axes_name, axes in panels.items():
        named = set()
        for run in runs:
            label, colour, line = METHODS[run["method"]]
            points = [(point[axes_name], point["loss"]) for point in run["curve"]]
            axes.plot(
                *zip(*points, strict=True), color=colour, linestyle=line, alpha=0.8,
                label=None if label in named else label,
            )  # fmt: skip
            named.add(label)
        priors = [run["test"]["calibrated_zero_shot"]["loss"] for run in runs]
        axes.axhline(sum(priors) / len(priors), color="#666666", linewidth=0.8, label="calibrated zero-shot")
        axes.set_xlabel({"passes": "forward passes", "seconds": "seconds of steps"}[axes_name])
        axes.grid(visible=True, alpha=0.3)
    panels["passes"].set_ylabel("validation loss, nats")
    panels["passes"].legend(loc="upper right")
    figure.suptitle(f"Tuning SmolLM2-135M in 4 bits on {found['task']}", x=0.01, ha="left")
    return save(figure, found, stem, "A line per run; each was planned for the passes that it ends after.")
