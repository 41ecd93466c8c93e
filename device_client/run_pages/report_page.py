"""A run as one page: what it came to, how it went, what it took, and some rows before and after.

Where rows are shown, the page says so at its top, and its file is for its owner alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from device_client.run_pages.chart import Level, Series, line_chart
from device_client.run_pages.page import readable_seconds, render_page
from device_client.run_pages.run_view import RunView, read_run
from device_client.run_pages.settings_table import flat_settings, shown_value
from device_client.tuning.figures import PARTS, result_lines, shown_columns
from shared.byte_sizes import format_bytes
from shared.durable_files import disk_errors, write_atomically

REPORT = "report.html"
_FILE_MODE = 0o600


def write_report(folder: Path, output: Path | None = None, *, has_rows: bool = True) -> Path:
    """Write the page of a run and return where.

    Args:
        folder: The run's.
        output: The page's file; report.html in the folder by default.
        has_rows: Whether a person's rows may be on it.

    Raises:
        NotFound: There is no run in the folder.
        IntegrityError: A file of the run is damaged.
        DiskError: The page cannot be written.
    """
    page = report_page(read_run(folder), has_rows=has_rows)
    place = output or folder / REPORT
    with disk_errors(place):
        write_atomically(place, page, mode=_FILE_MODE)
    return place


def report_page(run: RunView, *, has_rows: bool = True) -> bytes:
    """Return the page of a run, UTF-8; ``has_rows`` says whether a person's rows may be on it."""
    answers = run.answers or {}
    return render_page(
        "report.html",
        run=run,
        headline=list(_headline(run)),
        columns=shown_columns(run.metric),
        lines=list(result_lines(run.result)),
        charts=_charts(run),
        machine=list(_machine(run.resources)),
        answers=answers,
        shown=answers.get("shown", []) if has_rows else [],
        settings=[(name, shown_value(value)) for name, value in flat_settings(run.config).items()],
    )


def _headline(run: RunView) -> Iterator[tuple[str, str]]:
    """Yield what a person asks first: what changed on the rows that count, and what it cost."""
    part = next((part for part in reversed(PARTS) if part in run.result), None)
    if part is not None:
        before, after = run.result[part]["bundle"], run.result[part]["best"]
        rows = f"{after['rows']} {part} rows"
        for name, form in (("loss", ".3f"), ("accuracy", ".1%"), ("score", ".4g")):
            if before.get(name) is not None and after.get(name) is not None:
                called = run.metric if name == "score" else name
                yield f"{called} of {rows}", f"{before[name]:{form}} → {after[name]:{form}}"
    yield "steps", f"{len(run.records)} of {run.settings['steps']}"
    yield "forward passes", f"{run.passes()[-1]:,}"
    seconds = run.seconds()
    if seconds is not None:
        yield "worked", readable_seconds(seconds(len(run.records)))
    peak = run.resources.get("peak_memory_bytes")
    if peak:
        yield "peak memory", format_bytes(peak)


def _charts(run: RunView) -> Mapping[str, str]:
    what = "loss, nats per answer" if run.metric is None else run.metric
    training, validation = run.training_points(), run.validation_points()

    def curves(place: Any) -> list[Series]:
        return [
            Series("training, running mean", place(training), 0),
            Series("validation", place(validation), 1, has_dots=True),
        ]

    floor = run.resources.get("noise_floor")
    levels = [Level("noise floor", floor, 1)] if floor and run.metric is None else []
    difference = "|ΔL|, nats" if run.metric is None else f"|Δ {run.metric}|"
    return {
        "passes": line_chart(curves(run.against_passes), x_label="forward passes", y_label=what),
        "seconds": line_chart(curves(run.against_seconds), x_label="seconds worked", y_label=what),
        "differences": line_chart(
            [Series("each step", run.loss_differences(), 0, is_line=False)],
            x_label="steps", y_label=difference, levels=levels, is_log=True,
        ),
        "signal": line_chart([Series("running mean", run.signal_shares())], x_label="steps", y_label="signal share"),
        "pace": line_chart(
            [Series("between validations", run.steps_per_second(), has_dots=True)],
            x_label="steps", y_label="steps per second",
        ),
    }  # fmt: skip


def _machine(resources: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what the run took, in words."""
    for label, name in (
        ("peak memory", "peak_memory_bytes"),
        ("memory that was planned", "planned_memory_bytes"),
        ("memory budget", "memory_budget_bytes"),
        ("states kept in memory", "kept_states_bytes"),
        ("states kept in a file", "states_file_bytes"),
    ):
        if resources.get(name):
            yield label, format_bytes(resources[name])
    if resources.get("paused_seconds"):
        yield "waited in between", readable_seconds(resources["paused_seconds"])
    if resources.get("seconds_per_step"):
        yield "a step took", readable_seconds(resources["seconds_per_step"])
    if resources:
        parts = (resources.get(name) for name in ("device", "backend", "compute_dtype"))
        yield "computed on", ", ".join(str(part) for part in parts if part)
        yield "sequences side by side", str(resources.get("micro_batch_rows", "–"))
