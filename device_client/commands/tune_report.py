"""What ``zo-device tune`` says of a run: results beside what needs no tuning, what was measured, and what to doubt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from device_client.console import Console
from device_client.tuning.figures import CALIBRATED, result_lines, shown_columns
from shared.byte_sizes import format_bytes

if TYPE_CHECKING:
    from device_client.tuning.tune_run import TuneReport

LEAST_SIGNAL = 2
"""A median |ΔL| under so many noise floors is worth a warning."""


def show_report(report: TuneReport, console: Console) -> None:
    """Show what a run came to."""
    from device_client.tuning.curve import sparkline
    from device_client.tuning.run_directory import RunDirectory

    result, resources = report.result, report.resources
    if report.was_finished:
        console.say("This run is finished; nothing was done.")
    metric = result.get("metric")
    console.table(f"Run {report.run.name}", ("rows", *shown_columns(metric)), list(result_lines(result)))
    _warn_of_prior(result, console)
    _warn_of_start(result, console)
    run = RunDirectory(report.run)
    metrics = run.metrics()
    chosen_by = "loss" if metric is None else "score"
    found = [line[chosen_by] for line in metrics if line["kind"] == "validation" and line[chosen_by] is not None]
    console.say(f"Validation {metric or 'loss'} {sparkline(found)}")
    pace = resources.get("seconds_per_step")
    difference, noise = result.get("median_loss_difference"), resources.get("noise_floor")
    if "measured" in result:
        console.say(measured_line(result["measured"], pace))
    budget, peak = resources.get("memory_budget_bytes"), resources.get("peak_memory_bytes")
    console.say(
        f"{result['steps_done']} steps ({result['forward_passes']} forward passes), stopped by {result['stopped_by']}, "
        f"best at step {result['best_step']}; {result['clipped_steps']} steps clipped, "
        f"{result['skipped_steps']} skipped"
        + (f", {result['still_steps']} found no difference and left the values alone" if metric else "")
        + (f"; median |ΔL| {difference:.2g} nats" if difference is not None and not metric else "")
        + (f" over a noise floor of {noise:.1g}" if noise is not None else "")
        + (f"; {pace:.3g} s per step" if pace else "")
        + (f"; peak memory {format_bytes(peak)}" if peak else "")
        + (f" of {format_bytes(budget)}" if peak and budget else "")
    )
    if noise is not None and difference is not None and difference < LEAST_SIGNAL * noise:
        console.warn(
            f"Half of the loss differences are below {LEAST_SIGNAL} times what rounding does to them: the direction of "
            "such a step is little better than drawn by lot. Next: --epsilon or --batch larger, or --dtype float32 "
            "without --products"
        )
    if metric and 2 * result["still_steps"] > result["steps_done"]:
        console.warn(
            f"{result['still_steps']} of {result['steps_done']} steps found no row whose answer changed between both "
            "sides: their forward passes bought nothing. Next: a larger --epsilon or --batch, or an objective that "
            "some answers meet already"
        )
    kept = (run.read_json("answers.json") or {}).get("shown", [])
    console.say(f"Report: {report.run / 'report.html'}" + (", which holds rows of your data" if kept else ""))
    if result["stopped_by"] == "time budget":
        console.say("The time budget is spent and the run is not finished: run the same command again to continue.")


def _warn_of_prior(result: Mapping[str, Any], console: Console) -> None:
    """Say so where the gain is no more than the labels' words explain."""
    part = "test" if "test" in result else "validation"
    best, prior = result[part]["best"], result[part].get(CALIBRATED)
    if prior is not None and None not in (best["loss"], prior["loss"]) and best["loss"] >= prior["loss"]:
        console.warn(
            f"the {part} loss of the best values is not below {prior['loss']:.4f}, which the bundle reaches without a "
            "step once its preference for some of the labels' words is taken away (calibrated zero-shot): this gain "
            "says nothing about the rows yet. Next: more --steps, or more rows"
        )


def _warn_of_start(result: Mapping[str, Any], console: Console) -> None:
    """Say so where a method that begins elsewhere has not come back to what the bundle answers by itself."""
    found = result["validation"]
    own, best = found["bundle"]["loss"], found["best"]["loss"]
    if "start" in found and None not in (own, best) and best >= own:
        console.warn(
            f"the validation loss of the best values, {best:.4f}, is not below the bundle's own, {own:.4f}: the "
            f"{result['method']} began at {found['start']['loss']:.4f}. Next: more --steps, or another --method"
        )


def measured_line(measured: Mapping[str, float | None], seconds_per_step: float | None) -> str:
    """Return what the run measured, in words.

    Args:
        measured: Of result.json.
        seconds_per_step: None where no step was made in this process.
    """
    share, trace, batch, fall = (
        measured[name] for name in ("signal_share", "curvature", "useful_batch", "expected_fall_per_step")
    )
    parts = [
        f"signal share {share:.0%}" if share else "no signal that the rows of a batch agree on",
        "curvature not measured" if trace is None else f"curvature {trace:.3g}",
    ]
    if batch is not None:
        parts.append(f"more than {max(1, round(batch))} rows per step buy little")
    if fall is not None and seconds_per_step:
        parts.append(f"expected fall of the loss {60 * fall / seconds_per_step:.2g} nats per minute")
    return f"Measured: {'; '.join(parts)}."
