"""Runs side by side: settings that differ, results, and the courses of their validations.

Rows, templates and labels may be private; of these the comparison shows digests and what differs of the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from device_client.run_pages.chart import Series, line_chart
from device_client.run_pages.page import readable_seconds, render_page
from device_client.run_pages.run_view import Point, RunView
from device_client.run_pages.settings_table import differing_settings, shown_value
from device_client.tuning.figures import PARTS, STAGES, described
from shared.byte_sizes import format_bytes

Line = tuple[str, list[Any]]
"""Name of a figure → its value in each run, None where a run has none."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What runs have side by side.

    Attributes:
        runs: At least two.
        settings: Those that differ.
    """

    runs: Sequence[RunView]
    settings: dict[str, list[Any]]

    @property
    def names(self) -> list[str]:
        """Of the runs; a folder's name alone where no two share it."""
        names = [run.name for run in self.runs]
        return names if len(set(names)) == len(names) else [str(run.path) for run in self.runs]

    @property
    def warnings(self) -> list[str]:
        """What keeps figures from being compared."""
        reasons = {
            "bundle_digest": "bundle",
            "validation": "validation rows",
            "test": "test rows",
            "rendering": "prompts",
        }
        configs = [run.config for run in self.runs]
        parts = [{**config, **config.get("rows", {})} for config in configs]
        differing = [word for key, word in reasons.items() if any(part.get(key) != parts[0].get(key) for part in parts)]
        return [f"Not the same {', '.join(differing)}: compare results with care."] if differing else []

    def results(self) -> list[Line]:
        """Return the figures of the runs' results: losses, accuracies, scores, and what they cost."""
        lines: list[Line] = [("state", [run.state for run in self.runs])]
        for part in PARTS:
            for stage in STAGES:
                for figure in ("loss", "accuracy", "score"):
                    found = [run.result.get(part, {}).get(stage, {}).get(figure) for run in self.runs]
                    if any(value is not None for value in found):
                        called = next(
                            described(stage, run.result[part][stage])
                            for run in self.runs
                            if stage in run.result.get(part, {})
                        )
                        lines.append((f"{part} {figure}, {called}", found))
        names = ("best_step", "median_loss_difference", "clipped_steps", "skipped_steps")
        lines += [(name.replace("_", " "), [run.result.get(name) for run in self.runs]) for name in names]
        lines.append(("signal share", [(run.result.get("measured") or {}).get("signal_share") for run in self.runs]))
        lines.append(("steps", [len(run.records) for run in self.runs]))
        lines.append(("forward passes", [run.passes()[-1] for run in self.runs]))
        lines.append(("seconds worked", [_seconds(run) for run in self.runs]))
        lines += [
            (name.removesuffix("_bytes").replace("_", " "), [run.resources.get(name) for run in self.runs])
            for name in ("noise_floor", "seconds_per_step", "peak_memory_bytes")
        ]
        return [(name, found) for name, found in lines if any(value is not None for value in found)]

    def as_json(self) -> dict[str, Any]:
        """Return all of it, with the points of the courses."""
        return {
            "runs": [{"name": run.name, "path": str(run.path), "state": run.state} for run in self.runs],
            "warnings": self.warnings,
            "settings": self.settings,
            "results": dict(self.results()),
            "validation_by_passes": [run.against_passes(run.validation_points()) for run in self.runs],
            "validation_by_seconds": [run.against_seconds(run.validation_points()) for run in self.runs],
        }


def compare_runs(runs: Sequence[RunView]) -> Comparison:
    """Return what runs have side by side."""
    return Comparison(runs, differing_settings([run.config for run in runs]))


def shown_lines(comparison: Comparison) -> tuple[list[tuple[str, list[str]]], list[tuple[str, list[str]]]]:
    """Return settings and results as lines of a table for people."""
    settings = [(name, [shown_value(value) for value in values]) for name, values in comparison.settings.items()]
    return settings, [(name, [_shown(name, value) for value in values]) for name, values in comparison.results()]


def comparison_page(comparison: Comparison) -> bytes:
    """Return the page, UTF-8."""
    settings, results = shown_lines(comparison)
    metrics = {run.metric for run in comparison.runs}
    what = "validation " + ("loss, nats" if metrics == {None} else " or ".join(sorted(m or "loss" for m in metrics)))
    return render_page(
        "compare.html",
        names=comparison.names,
        warnings=comparison.warnings,
        settings=settings,
        results=results,
        charts={
            "passes": _chart(comparison, lambda run: run.against_passes, "forward passes", what),
            "seconds": _chart(comparison, lambda run: run.against_seconds, "seconds worked", what),
        },
    )


def _chart(
    comparison: Comparison, place: Callable[[RunView], Callable[[Sequence[Point]], list[Point]]], x: str, y: str
) -> str:
    named = zip(comparison.names, comparison.runs, strict=True)
    series = [
        Series(name, place(run)(run.validation_points()), number, has_dots=True)
        for number, (name, run) in enumerate(named)
    ]
    return line_chart(series, x_label=x, y_label=y)


def _seconds(run: RunView) -> float | None:
    seconds = run.seconds()
    return None if seconds is None else seconds(len(run.records))


def _shown(name: str, value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or "–"
    if name == "peak memory":
        return format_bytes(value)
    if name.startswith("seconds"):
        return readable_seconds(value)
    if "accuracy" in name or name == "signal share":
        return f"{value:.1%}"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4f}" if " loss, " in name else f"{value:.4g}"
