"""``zo-device eval``: loss and accuracy of a bundle, or of a run's best values, on rows."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from device_client.commands.machine_arguments import add_machine_arguments, machine
from device_client.commands.task_arguments import add_row_arguments, data_options, positive
from device_client.console import Console
from device_client.settings import Settings
from shared.byte_sizes import format_bytes, parse_bytes

if TYPE_CHECKING:
    from device_client.tasks.task_data import DataOptions, Tokenizer
    from device_client.tuning.run_directory import RunDirectory
    from shared.bundle.read import Bundle
    from shared.tasks.datasets import Record
    from shared.tasks.rendering import RowRenderer

NAME = "eval"
HELP = "measure a bundle, or a run's best values, on rows"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's own arguments."""
    parser.add_argument("reference", nargs="?", metavar="REF", help="bundle name[:tag] (default: the only one)")
    parser.add_argument("--run", metavar="RUN", help="name or folder of a tuning run; its prompts are used")
    add_row_arguments(parser)
    parser.add_argument("--rows", type=positive, metavar="N", help="draw so many rows by --seed (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: 0)")
    parser.add_argument("--loss", choices=("auto", "candidates", "vocabulary"), default="auto")
    parser.add_argument("--micro-batch", type=positive, metavar="N", help="sequences at once (default: by the budget)")
    add_machine_arguments(parser)
    parser.set_defaults(
        validation=None, validation_share=0.5, test=None, train_rows=None, validation_rows=None, test_rows=None
    )


def run(arguments: argparse.Namespace, console: Console, settings: Settings) -> dict[str, Any]:
    """Score the rows and return loss and accuracy.

    Raises:
        NotFound: There is no such run.
        Conflict: The run was made from another bundle.
        DataError: A row is unusable.
        ResourceError: The micro-batch does not fit the budget, or not one sequence fits the memory.
    """
    from device_client.devices import dtype_name
    from device_client.model.open import open_model
    from device_client.planning.memory_fit import side_by_side
    from device_client.store import resolve_bundle
    from device_client.tasks.scoring import check_objective
    from device_client.tuning.evaluation import ROWS_AT_ONCE, evaluate
    from device_client.tuning.run_directory import find_run, load_theta
    from device_client.tuning.smaller_batches import MicroBatch, with_smaller_batches
    from device_client.tuning.tune_run import default_objective
    from shared.model.tokenizer import BundleTokenizer
    from shared.tasks.datasets import draw_rows
    from shared.tasks.examples import encode_rows

    bundle = resolve_bundle(settings, arguments.reference)
    tuned = find_run(settings.runs, arguments.run, bundle) if arguments.run else None
    options = data_options(arguments, seed=arguments.seed)
    tokenizer = BundleTokenizer.from_bundle(bundle)
    records = draw_rows(rows_to_score(options), arguments.rows, arguments.seed)
    renderer = _renderer(options, records, tokenizer, bundle, tuned)
    examples = encode_rows(renderer.render(records), tokenizer, max_tokens=options.max_tokens)
    objective = default_objective(examples) if arguments.loss == "auto" else arguments.loss
    check_objective(examples, objective)
    allowed = machine(arguments, console, settings)
    opened = open_model(bundle, allowed, side_by_side(examples, min(ROWS_AT_ONCE, len(examples))))
    model, micro_batch = opened.model, MicroBatch(opened.fit.micro_batch_rows)
    model.write_theta(load_theta(tuned.path, sensitive_count=model.sensitive_count) if tuned else model.initial_theta())
    with console.progress("scoring", len(examples), "rows") as bar:
        found = with_smaller_batches(
            lambda: evaluate(model, examples, objective, micro_batch_rows=micro_batch.rows, advance=bar.advance),
            micro_batch,
            lambda: bar.update(0, note=f"out of memory: now {micro_batch.rows} sequences at once"),
        )
    accuracy = "–" if found.accuracy is None else f"{found.accuracy:.1%}"
    values = tuned.name if tuned else "the bundle's own"
    console.table(f"{found.rows} rows", ("values", "loss", "accuracy"), [(values, f"{found.loss:.4f}", accuracy)])
    console.say(
        f"Peak memory {format_bytes(model.memory.peak_bytes)} of {format_bytes(parse_bytes(arguments.memory_budget))}"
    )
    return {
        **found.as_json(),
        "objective": objective,
        "bundle": bundle.digest,
        "run": str(tuned.path) if tuned else None,
        "truncated_rows": sum(example.truncated_tokens > 0 for example in examples),
        "backend": model.backend_name,
        "compute_dtype": dtype_name(model.compute_dtype),
        "micro_batch_rows": micro_batch.rows,
        "peak_memory_bytes": model.memory.peak_bytes,
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


def _renderer(
    options: DataOptions, records: list[Record], tokenizer: Tokenizer, bundle: Bundle, tuned: RunDirectory | None
) -> RowRenderer:
    from device_client.tasks.task_data import make_renderer
    from device_client.tuning.run_directory import CONFIG
    from shared.tasks.rendering import renderer_from_json

    if tuned is None:
        return make_renderer(options, records, tokenizer, str(bundle.config.architecture["model_type"]))
    config = tuned.read_json(CONFIG) or {}
    return renderer_from_json(config["rendering"], tokenizer)
