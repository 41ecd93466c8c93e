"""``zo-device tune``: fine-tune a bundle's sensitive values on rows that stay on this machine."""

from __future__ import annotations

import argparse
import time
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
from device_client.commands.tune_report import show_report
from device_client.console import Console, ProgressBar
from device_client.interrupts import sigterm_as_interrupt
from device_client.machine_strain import DEFAULT_LIMITS, LIMITS, parse_limits
from device_client.planning.methods import METHODS
from device_client.planning.tuned_blocks import check_blocks
from device_client.settings import Settings
from device_client.tuning.figures import SHOWN_ROWS
from device_client.tuning.metric_step import EPSILON_SHARE, WALK_SHARE
from device_client.tuning.settings import DEFAULTS, TuneSettings, parse_lr, parse_step
from shared.byte_sizes import parse_bytes
from shared.errors import Interrupted, InvalidRequest

if TYPE_CHECKING:
    from device_client.model.open import Machine
    from device_client.tuning.evaluation import Evaluation
    from device_client.tuning.journal import StepRecord
    from device_client.tuning.tune_run import MachineSettings

NAME = "tune"
HELP = "fine-tune a bundle on your own rows; run again to resume"


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
    group.add_argument(
        "--steps", type=positive, default=DEFAULTS.steps, metavar="N", help="to make (default: %(default)s)"
    )
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
    group.add_argument(
        "--decay",
        choices=("constant", "linear"),
        default=DEFAULTS.decay,
        help="of the step's length over the run (default: %(default)s)",
    )
    group.add_argument(
        "--queries", type=positive, default=DEFAULTS.queries, metavar="Q", help="directions per step (default: 1)"
    )
    group.add_argument(
        "--directions", choices=("two-sided", "one-sided"), default=DEFAULTS.directions,
        help="two passes per direction, or one and two directions or more (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--distribution",
        choices=("gaussian", "rademacher"),
        default=DEFAULTS.distribution,
        help="of the directions (default: %(default)s)",
    )
    group.add_argument(
        "--clip",
        type=positive_number,
        default=DEFAULTS.clip_multiple,
        metavar="M",
        help="clip g at M times its median (default: %(default)g)",
    )
    group.add_argument(
        "--blocks", default=DEFAULTS.blocks, metavar="WHICH",
        help="all, upper:N for the last N decoder blocks, or auto for the upper third, where rows agree most on what "
        "to change; what lies below is computed once per row, so a step costs less (default: all)",
    )  # fmt: skip
    group.add_argument(
        "--seed", type=int, default=DEFAULTS.seed, help="of rows held out, batches and perturbations (default: 0)"
    )
    group.add_argument(
        "--validate-every",
        type=positive,
        metavar="N",
        help="steps between two validations (default: a twentieth of all)",
    )
    group.add_argument("--patience", type=positive, metavar="N", help="stop after N validations without a new best")
    group = parser.add_argument_group("machine")
    group.add_argument(
        "--time-budget", type=seconds, metavar="10m",
        help="of this call, pauses included: stop after so long; the same command again continues with a budget of its "
        "own",
    )  # fmt: skip
    group.add_argument(
        "--pause-on", type=parse_limits, default=dict(DEFAULT_LIMITS), metavar="WHAT,…",
        help="wait between two steps while the battery discharges below a percentage, a sensor is hotter than so many "
        "°C, or other programs take more than so many percent of the CPUs or somebody types: "
        f"{', '.join(f'{kind}={limit:g}' for kind, limit in LIMITS.items())}, each also without its number; none never "
        f"waits. A pause changes no bit of the run (default: {','.join(DEFAULT_LIMITS)})",
    )  # fmt: skip
    group.add_argument(
        "--states-file", default="4GiB", metavar="SIZE",
        help="with --blocks upper:N: what a file in the run's folder may take while it is tuned, for what lies below "
        "and does not fit the memory; 0 keeps none (default: %(default)s)",
    )  # fmt: skip
    group.add_argument("--micro-batch", type=positive, metavar="N", help="sequences at once (default: by the budget)")
    add_machine_arguments(group)
    group.add_argument("--output", type=Path, metavar="DIR", help="run folder (default: named in the runs folder)")
    group.add_argument(
        "--kept-rows", type=int, choices=range(101), default=SHOWN_ROWS, metavar="0…100",
        help="how many of the judged rows the run keeps for its report, with the answers before and after (default: "
        "%(default)s)",
    )  # fmt: skip


def run(arguments: argparse.Namespace, console: Console, settings: Settings) -> dict[str, Any]:
    """Tune, or continue, or say that it is finished.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; the message holds the command that continues.
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
        with sigterm_as_interrupt(), console.progress("tuning", wanted.steps, "steps") as bar:
            allowed = machine_settings(arguments, machine(arguments, console, settings))
            report = tune(planned, allowed, _Narrator(bar, console), time.monotonic)
    except KeyboardInterrupt as error:
        raise Interrupted(
            f"interrupted; everything done is in {planned.directory.path}",
            next_step=arguments.typed,
        ) from error
    show_report(report, console)
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
        pause_limits=arguments.pause_on,
        kept_rows=arguments.kept_rows,
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
