"""``zo-device eval``: loss and accuracy of a bundle, or of a run's best values, on rows."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from device_client.commands.machine_arguments import add_machine_arguments, machine
from device_client.commands.objective_arguments import AskedObjective, add_objective_arguments, asked_objective
from device_client.commands.run_options import check_options_of_run
from device_client.commands.task_arguments import add_row_arguments, data_options, positive
from device_client.console import Console, ProgressBar
from device_client.settings import Settings
from device_client.tuning.figures import BUNDLE, described, shown_columns, shown_figures
from shared.byte_sizes import format_bytes, parse_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from device_client.model.sparse_model import SparseModel
    from device_client.tasks.prompts import Prompts, Tokenizer
    from device_client.tasks.task_data import DataOptions
    from device_client.tuning.run_directory import RunDirectory
    from device_client.tuning.smaller_batches import MicroBatch
    from shared.bundle.read import Bundle
    from shared.tasks.datasets import Record
    from shared.tasks.examples import Example

NAME = "eval"
HELP = "measure a bundle, or a run's best values, on rows"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's own arguments."""
    parser.add_argument("reference", nargs="?", metavar="REF", help="bundle name[:tag] (default: the only one)")
    parser.add_argument(
        "--run",
        metavar="RUN",
        help="name or folder of a tuning run; how rows become tokens, and the objective, are the run's",
    )
    add_row_arguments(parser)
    parser.add_argument("--rows", type=positive, metavar="N", help="draw so many rows by --seed (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: 0)")
    add_objective_arguments(parser)
    parser.add_argument("--micro-batch", type=positive, metavar="N", help="sequences at once (default: by the budget)")
    add_machine_arguments(parser)
    parser.set_defaults(
        validation=None, validation_share=0.5, test=None, train_rows=None, validation_rows=None, test_rows=None
    )


def run(arguments: argparse.Namespace, console: Console, settings: Settings) -> dict[str, Any]:
    """Score the rows and return loss and accuracy.

    Raises:
        NotFound: There is no such run.
        InvalidRequest: An option contradicts the run.
        Conflict: The run was made from another bundle.
        DataError: A row is unusable.
        ResourceError: The micro-batch does not fit the budget, or not one sequence fits the memory.
    """
    from device_client.devices import dtype_name
    from device_client.model.open import open_model
    from device_client.planning.memory_fit import side_by_side
    from device_client.planning.methods import tuned_part
    from device_client.store import resolve_bundle
    from device_client.tasks.checker import checking
    from device_client.tasks.scoring import settled_objective
    from device_client.tasks.task_data import cut_warnings, make_examples, row_warnings
    from device_client.tuning.evaluation import ROWS_AT_ONCE, Evaluation
    from device_client.tuning.make_goal import make_goal
    from device_client.tuning.run_directory import find_run
    from device_client.tuning.smaller_batches import MicroBatch, with_smaller_batches
    from device_client.tuning.tuned_values import answer_as_tuned, check_room, part_of_run
    from shared.model.tokenizer import BundleTokenizer
    from shared.tasks.datasets import draw_rows

    bundle = resolve_bundle(settings, arguments.reference)
    tuned = find_run(settings.runs, arguments.run, bundle) if arguments.run else None
    asked = _objective(arguments, tuned)
    options = replace(data_options(arguments, seed=arguments.seed), judged_tokens=asked.judged_tokens)
    tokenizer = BundleTokenizer.from_bundle(bundle)
    records = draw_rows(rows_to_score(options), arguments.rows, arguments.seed)
    prompts = _prompts(arguments, options, records, tokenizer, bundle, tuned)
    examples = make_examples(options, prompts, records)
    objective = settled_objective(examples, asked.loss, asked.metric)
    for warning in [*row_warnings(records, prompts), *cut_warnings(examples)]:
        console.warn(warning)
    allowed = machine(arguments, console, settings)
    part = part_of_run(tuned, bundle.config) if tuned else tuned_part(bundle.config)
    check_room(part, examples, bundle.config)
    most = side_by_side(
        examples, min(ROWS_AT_ONCE, len(examples)), answer_tokens=asked.answer_tokens or 0, method=part.method.name
    )
    opened = open_model(bundle, allowed, most)
    model, micro_batch = opened.model, MicroBatch(opened.fit.micro_batch_rows)
    has_choice = objective == "candidates"
    passes = 1 + bool(has_choice and (tuned or asked.metric))
    with (
        console.progress("scoring", len(examples) * passes, "rows") as bar,
        checking(
            asked.checker, timeout_seconds=arguments.checker_timeout, may_connect=arguments.checker_may_connect
        ) as checker,
    ):
        stages = _without_tuning(model, examples, tokenizer, micro_batch, arguments.seed, bar) if has_choice else {}
        if stages and tuned is None and asked.metric is None:
            found = Evaluation.from_json(stages.pop(BUNDLE))
        else:
            if tuned:
                answer_as_tuned(tuned, model)
            else:
                model.write_theta(model.initial_theta())
            goal = make_goal(model, model.tokenizer, objective, asked.metric, asked.answer_tokens, checker)
            found = with_smaller_batches(
                lambda: goal.evaluate(examples, micro_batch.rows, bar.advance),
                micro_batch,
                lambda: bar.update(0, note=f"out of memory: now {micro_batch.rows} sequences at once"),
            )
    lines = [shown_figures(described(stage, figures), figures, asked.metric) for stage, figures in stages.items()]
    lines.append(shown_figures(tuned.name if tuned else "the bundle's own", found.as_json(), asked.metric))
    console.table(f"{found.rows} rows", shown_columns(asked.metric), lines)
    console.say(
        f"Peak memory {format_bytes(model.memory.peak_bytes)} of {format_bytes(parse_bytes(arguments.memory_budget))}"
    )
    return {
        **found.as_json(),
        "without_tuning": stages,
        "objective": objective,
        "metric": asked.metric,
        "bundle": bundle.digest,
        "run": str(tuned.path) if tuned else None,
        "truncated_rows": sum(example.truncated_tokens > 0 for example in examples),
        "cut_answers": sum(example.lost_answer_tokens > 0 for example in examples),
        "backend": model.backend_name,
        "products": model.products,
        "compute_dtype": dtype_name(model.compute_dtype),
        "micro_batch_rows": micro_batch.rows,
        "peak_memory_bytes": model.memory.peak_bytes,
    }


def _without_tuning(
    model: SparseModel,
    examples: list[Example],
    tokenizer: Tokenizer,
    micro_batch: MicroBatch,
    seed: int,
    bar: ProgressBar,
) -> dict[str, dict[str, Any]]:
    """Return what the bundle's own values reach: as they are, without the labels' prior, and with rows in context."""
    from device_client.tuning.baselines import Room, baselines_of_rows, evaluation_of
    from device_client.tuning.evaluation import choice_scores
    from device_client.tuning.smaller_batches import with_smaller_batches

    def score(rows: Sequence[Example], micro_batch_rows: int) -> Tensor:
        return with_smaller_batches(
            lambda: choice_scores(model, rows, micro_batch_rows=min(micro_batch_rows, micro_batch.rows)),
            micro_batch,
            lambda: bar.update(0, note=f"out of memory: now {micro_batch.rows} sequences at once"),
        )

    model.write_theta(model.initial_theta())
    own = score(examples, micro_batch.rows)
    bar.advance(len(examples))
    room = Room(micro_batch.rows, max(example.token_count for example in examples))
    return {
        BUNDLE: evaluation_of(own, examples).as_json(),
        **baselines_of_rows(own, score, examples, tokenizer, room, seed=seed),
    }


def rows_to_score(options: DataOptions) -> list[Record]:
    """Return all rows of ``--data``, or the test rows of ``--task``.

    Raises:
        InvalidRequest: Not exactly one of them is given.
        DataError: A file is unusable.
    """
    from device_client.tasks.task_data import check_source, read_part

    check_source(options)
    return read_part(options, "test" if options.task else "train")


def _prompts(
    arguments: argparse.Namespace,
    options: DataOptions,
    records: list[Record],
    tokenizer: Tokenizer,
    bundle: Bundle,
    tuned: RunDirectory | None,
) -> Prompts:
    """Return the prompts that the run was tuned on, or those that the options describe."""
    from device_client.tasks.prompts import prompts_of_run
    from device_client.tasks.task_data import make_prompts

    if tuned is None:
        return make_prompts(options, records, tokenizer, str(bundle.config.architecture["model_type"]))
    config = tuned.read_config()
    check_options_of_run(arguments, config, tuned.name)
    return prompts_of_run(config, tokenizer)


def _objective(arguments: argparse.Namespace, tuned: RunDirectory | None) -> AskedObjective:
    """Return what the run was tuned for, or what the options ask for."""
    from device_client.tasks.checker import checker_of_run

    if tuned is None:
        return asked_objective(arguments)
    settings = tuned.read_config()["settings"]
    asked = AskedObjective(settings["objective"], settings.get("metric"), settings.get("answer_tokens"))
    if asked.metric != "checker":
        return asked
    return asked._replace(checker=checker_of_run(settings["checker"], settings["checker_digest"], tuned.name))
