"""The figures of result.json for people: which values, their loss, accuracy and score, as lines of a table.

Shared by the terminal and the pages. Imports no torch. Knows nothing about how they were measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

BUNDLE, CALIBRATED, IN_CONTEXT = "bundle", "calibrated_zero_shot", "in_context"
STAGES = (BUNDLE, CALIBRATED, IN_CONTEXT, "start", "last", "best")
"""What a part's rows were evaluated with, in the order of the table."""
PARTS = ("validation", "test")
SHOWN_ROWS = 10
"""How many judged rows a run keeps with their answers where nothing else is said."""


def shown_columns(metric: str | None) -> tuple[str, ...]:
    """Return the names of what ``shown_figures`` shows; accuracy has a column of its own already."""
    return ("values", "loss", "accuracy", *([metric] if metric is not None and metric != "accuracy" else []))


def shown_figures(values: str, figures: Mapping[str, Any], metric: str | None) -> tuple[str, ...]:
    """Return a line of a table for people: which values, their loss, their accuracy, their score."""
    unknown = "not finite" if figures.get("score") is None else "–"
    loss = unknown if figures["loss"] is None else f"{figures['loss']:.4f}"
    accuracy = "–" if figures["accuracy"] is None else f"{figures['accuracy']:.1%}"
    score = "–" if figures.get("score") is None else f"{figures['score']:.4g}"
    return values, loss, accuracy, *([score] if metric not in (None, "accuracy") else [])


def described(stage: str, figures: Mapping[str, Any]) -> str:
    """Return the name of a figure for people."""
    if stage != IN_CONTEXT:
        return stage.replace("_zero_shot", " zero-shot")
    least, most = figures["shown_rows"]
    return f"in context ({least} rows)" if least == most else f"in context ({least}–{most} rows)"


def result_lines(result: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield the lines of a result's table: the rows, then what ``shown_figures`` shows of each stage."""
    for part in PARTS:
        stages = result.get(part, {})
        for stage in (name for name in STAGES if name in stages):
            found = stages[stage]
            yield f"{part} ({found['rows']})", *shown_figures(described(stage, found), found, result.get("metric"))
