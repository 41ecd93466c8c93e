"""``zo-device tune``: fine-tune a bundle's sensitive values on rows that stay on this machine."""

from __future__ import annotations

import argparse
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from device_client.commands.machine_arguments import add_machine_arguments, machine
from device_client.commands.objective_arguments import add_objective_arguments, asked_objective
from device_client.commands.task_arguments import (
    add_row_arguments,
    add_split_arguments,
    data_options,
    positive,
    positive_number,
    seconds,
)
from device_client.console import Console, ProgressBar
from device_client.planning.methods import METHODS
from device_client.planning.tuned_blocks import check_blocks
from device_client.settings import Settings
from device_client.tuning.metric_step import EPSILON_SHARE, WALK_SHARE
from device_client.tuning.settings import DEFAULTS, TuneSettings, parse_lr, parse_step
from shared.byte_sizes import format_bytes, parse_bytes
from shared.errors import Interrupted, InvalidRequest

if TYPE_CHECKING:
    from device_client.model.open import Machine
    from device_client.tuning.evaluation import Evaluation
    from device_client.tuning.journal import StepRecord
    from device_client.tuning.tune_run import MachineSettings, TuneReport

NAME = "tune"
HELP = "fine-tune a bundle on your own rows; run again to resume"
LEAST_SIGNAL = 2
"""A median |ΔL| under so many noise floors is worth a warning."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's own arguments."""
    parser.add_argument("reference", nargs="?", metavar="REF", help="bundle name[:tag] (default: the only one)")
    add_row_arguments(parser)
    add_split_arguments(parser)
    add_objective_arguments(parser.add_argument_group("objective"))
    group = parser.add_argument_group("training")
    group.add_argument(
        "--method", choices=tuple(METHODS), default=DEFAULTS.method,
        help="what is tuned: the sensitive values, low-rank factors of rank 8 beside every linear weight, or keys and "
        "values of 5 positions in front of every text (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--gradient", choices=("zeroth-order", "first-order"), default=DEFAULTS.gradient,
        help="of forward passes alone, or exact: Adam with a backward pass, for more memory (default: %(default)s)",
    )  # fmt: skip
    group.add_argument("--steps", type=positive, default=DEFAULTS.steps, metavar="N", help="default: %(default)s")
    group.add_argument(
        "--batch", type=positive, default=DEFAULTS.batch_size, metavar="N", help="rows per step (default: %(default)s)"
    )
    group.add_argument(
        "--epsilon", type=positive_number,
        help=f"perturbation; --step auto doubles it where rounding hides the curvature (default: {DEFAULTS.epsilon:g}; "
        f"with --method prefix {METHODS['prefix'].epsilon:g}; with an objective other than the loss {EPSILON_SHARE:g} "
        "of the values' root mean square)",
    )  # fmt: skip
    group.add_argument(
        "--step",
        "--step-length",
        type=parse_step,
        metavar="auto|L",
        help="measured, or the length of a typical step (default: auto; with an objective other than the loss auto "
        f"lets the whole run walk {WALK_SHARE:g} of the values' root mean square)",
    )
    group.add_argument("--lr", type=parse_lr, help="a constant instead: the paper's 1e-6; in first order Adam's, 2e-3")
    group.add_argument("--decay", choices=("constant", "linear"), default=DEFAULTS.decay, help="default: %(default)s")
    group.add_argument(
        "--queries", type=positive, default=DEFAULTS.queries, metavar="Q", help="directions per step (default: 1)"
    )
    group.add_argument(
        "--directions", choices=("two-sided", "one-sided"), default=DEFAULTS.directions,
        help="two passes per direction, or one and two directions or more (default: %(default)s)",
    )  # fmt: skip
    group.add_argument("--distribution", choices=("gaussian", "rademacher"), default=DEFAULTS.distribution, help="of z")
    group.add_argument(
        "--clip", type=positive_number, default=DEFAULTS.clip_multiple, metavar="M", help="clip g at M times its median"
    )
    group.add_argument(
        "--blocks", default=DEFAULTS.blocks, metavar="WHICH",
        help="all, upper:N for the last N decoder blocks, or auto for the upper third, where rows agree most on what "
        "to change; what lies below is computed once per row, so a step costs less (default: all)",
    )  # fmt: skip
    group.add_argument(
        "--seed", type=int, default=DEFAULTS.seed, help="of rows held out, batches and perturbations (default: 0)"
    )
    group.add_argument("--validate-every", type=positive, metavar="N", help="steps (default: a twentieth)")
    group.add_argument("--patience", type=positive, metavar="N", help="stop after N validations without a new best")
    group = parser.add_argument_group("machine")
    group.add_argument("--time-budget", type=seconds, metavar="10m", help="stop after so long; run again to go on")
    group.add_argument(
        "--states-file", default="4GiB", metavar="SIZE",
        help="with --blocks upper:N: what a file in the run's folder may take while it is tuned, for what lies below "
        "and does not fit the memory; 0 keeps none (default: %(default)s)",
    )  # fmt: skip
    group.add_argument("--micro-batch", type=positive, metavar="N", help="sequences at once (default: by the budget)")
    add_machine_arguments(group)
    group.add_argument("--output", type=Path, metavar="DIR", help="run folder (default: named in the runs folder)")


def run(arguments: argparse.Namespace, console: Console, settings: Settings) -> dict[str, Any]:
    """Tune, or go on, or say that it is finished.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; the message holds the command that goes on.
    """
    from device_client.store import resolve_bundle
    from device_client.tuning.planned_run import plan_run
    from device_client.tuning.tune_run import tune

    wanted = tune_settings(arguments)
    options = data_options(arguments, seed=wanted.seed)
    bundle = resolve_bundle(settings, arguments.reference)
    planned = plan_run(bundle, wanted, options, runs=settings.runs, output=arguments.output)
    rows, part = planned.config["row_counts"], planned.part
    console.say(
        f"Run {planned.directory.path}: {rows['training']} training rows, {rows['validation']} validation rows"
        + (f", {part.blocks.name} of {part.blocks.count} blocks" if part.blocks.first else "")
        + (f", {part.value_count:,} values of method {part.method.name}" if part.method.is_beside_weights else "")
    )
    for warning in planned.data.warnings:
        console.warn(warning)
    try:
        with _sigterm_as_interrupt(), console.progress("tuning", wanted.steps, "steps") as bar:
            allowed = machine_settings(arguments, machine(arguments, console, settings))
            report = tune(planned, allowed, _Narrator(bar, console), time.monotonic)
    except KeyboardInterrupt as error:
        raise Interrupted(
            f"interrupted; everything done is in {planned.directory.path}",
            next_step=arguments.typed,
        ) from error
    show(report, console)
    return {
        "run": str(report.run),
        "was_finished": report.was_finished,
        "result": dict(report.result),
        "resources": dict(report.resources),
    }


def tune_settings(arguments: argparse.Namespace) -> TuneSettings:
    """Return what decides the run.

    Raises:
        InvalidRequest: An option is out of range.
    """
    if not 0 <= arguments.seed < 1 << 64:
        raise InvalidRequest(f"--seed {arguments.seed}", needed="a whole number from 0 to 2^64 − 1")
    if arguments.gradient == "first-order" and (arguments.queries > 1 or arguments.step is not None):
        raise InvalidRequest(
            "--queries or --step with --gradient first-order",
            needed="neither: an exact gradient draws no directions, and --lr is its rate",
            next_step="leave them out, or tune with --gradient zeroth-order",
            param="gradient",
        )
    asked = asked_objective(arguments)
    is_relative = asked.metric is not None and arguments.epsilon is None
    return TuneSettings(
        method=arguments.method,
        gradient=arguments.gradient,
        steps=arguments.steps,
        batch_size=arguments.batch,
        epsilon=METHODS[arguments.method].epsilon if arguments.epsilon is None else arguments.epsilon,
        epsilon_share=EPSILON_SHARE if is_relative else None,
        lr=arguments.lr,
        step_length=arguments.step,
        decay=arguments.decay,
        clip_multiple=arguments.clip,
        queries=arguments.queries,
        directions=arguments.directions,
        distribution=arguments.distribution,
        seed=arguments.seed,
        objective=asked.loss,
        metric=asked.metric,
        answer_tokens=asked.answer_tokens,
        checker=asked.checker.text if asked.checker else None,
        checker_digest=asked.checker.digest if asked.checker else None,
        validate_every=arguments.validate_every,
        patience=arguments.patience,
        blocks=check_blocks(arguments.blocks),
    )


def machine_settings(arguments: argparse.Namespace, allowed: Machine) -> MachineSettings:
    """Return what the machine allows, and for how long."""
    from device_client.tuning.tune_run import MachineSettings

    return MachineSettings(
        device=allowed.device,
        compute_dtype=allowed.compute_dtype,
        memory_budget_bytes=allowed.memory_budget_bytes,
        micro_batch_rows=allowed.micro_batch_rows,
        time_budget_seconds=arguments.time_budget,
        states_file_bytes=0 if arguments.states_file == "0" else parse_bytes(arguments.states_file),
        checker_timeout_seconds=arguments.checker_timeout,
        checker_may_connect=arguments.checker_may_connect,
        backend=allowed.backend,
    )


class _Narrator:
    """Shows a run on the console."""

    def __init__(self, bar: ProgressBar, console: Console) -> None:
        self._bar, self._console = bar, console
        self._validation = ""

    def stepped(self, record: StepRecord) -> None:
        self._bar.update(record.step + 1, note=self._validation)

    def validated(self, steps_done: int, evaluation: Evaluation, *, is_best: bool) -> None:
        what = f"loss {evaluation.loss:.4f}" if evaluation.score is None else f"score {evaluation.score:.4g}"
        self._validation = f"validation {what} at step {steps_done}" + (" (best)" * is_best)

    def note(self, text: str) -> None:
        self._console.say(text[:1].upper() + text[1:])


def show(report: TuneReport, console: Console) -> None:
    """Show what a run came to."""
    from device_client.tuning.curve import sparkline
    from device_client.tuning.evaluation import shown_columns
    from device_client.tuning.run_directory import RunDirectory

    result, resources = report.result, report.resources
    if report.was_finished:
        console.say("This run is finished; nothing was done.")
    metric = result.get("metric")
    parts = [part for part in ("validation", "test") if part in result]
    rows = [row for part in parts for row in _table_rows(part, result[part], metric)]
    console.table(f"Run {report.run.name}", ("rows", *shown_columns(metric)), rows)
    _warn_of_prior(result, console)
    _warn_of_start(result, console)
    metrics = RunDirectory(report.run).metrics()
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
            "such a step is little better than drawn by lot. Next: --epsilon or --batch larger, or --dtype float32"
        )
    if metric and 2 * result["still_steps"] > result["steps_done"]:
        console.warn(
            f"{result['still_steps']} of {result['steps_done']} steps found no row whose answer changed between both "
            "sides: their forward passes bought nothing. Next: a larger --epsilon or --batch, or an objective that "
            "some answers meet already"
        )
    console.say(f"Curve: {report.run / 'loss.svg'}")
    if result["stopped_by"] == "time budget":
        console.say("The time budget is spent and the run is not finished: run the same command again to go on.")


def _warn_of_prior(result: Mapping[str, Any], console: Console) -> None:
    """Say so where the gain is no more than the labels' words explain."""
    from device_client.tuning.baselines import CALIBRATED

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


def _table_rows(part: str, stages: Mapping[str, Mapping[str, Any]], metric: str | None) -> Iterator[tuple[str, ...]]:
    from device_client.tuning.baselines import BUNDLE, CALIBRATED, IN_CONTEXT, described
    from device_client.tuning.evaluation import shown_figures

    for stage in (BUNDLE, CALIBRATED, IN_CONTEXT, "start", "last", "best"):
        if stage not in stages:
            continue
        found = stages[stage]
        yield f"{part} ({found['rows']})", *shown_figures(described(stage, found), found, metric)


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
