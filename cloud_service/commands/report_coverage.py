"""``zo-cloud report coverage MODEL --task TASK --task-data DIR``: does a text's mask cover a task? (Figures 3 and 8).

Masks of the top 1e-2, 1e-3 and 1e-4 of every linear weight are chosen by the gradients of a text, by the task's own
gradients, by magnitude and at random; shown is the share of the task's squared gradients that each of them covers. With
--steps the model is fine-tuned first order, and the shares are followed step by step.

The text's pass follows the memory plan and the launcher, as that of ``zo-cloud prepare`` does. The task's rows do not:
their gradients, and the steps, are computed here, with the whole model and 4 bytes per linear weight in memory at once
(12 with Adam).

DIR/coverage.html   the page; coverage.svg the figure, coverage.json the data
DIR/.coverage       checkpoints of the text's pass; the same command goes on from them, and they are gone at the end
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloud_service.commands.label_words import label_words
from cloud_service.commands.local_sources import add_source_options, local_sources
from cloud_service.commands.means import add_means_options, means_of
from cloud_service.commands.request_options import OptionTable, add_options, checked_request, fill
from shared.errors import Conflict
from shared.file_lock import exclusive

if TYPE_CHECKING:
    from cloud_service.studies.coverage_run import CoverageRequest, MeasuredCoverage

# Where each option goes in CoverageRequest; the request's own rules check the values.
_OPTIONS: OptionTable = {
    "--task": ("task.task", {"help": "SST-2, RTE, CB, BoolQ, WSC, WiC, COPA, or rows for your own (default: rows)"}),
    "--task-data": (
        "task.text",
        {"required": True, "metavar": "PATH", "help": "folder of the tasks' folders, or a file of rows"},
    ),
    "--template": ("task.template", {"help": 'of labelled rows, for example "{text} It was {label}"'}),
    "--label-words": (
        "task.label_words",
        {"type": label_words, "metavar": "LABEL=WORD,…", "help": "of labelled rows: words that stand for the labels"},
    ),
    "--rows": ("rows", {"type": int, "help": "rows that select and measure, half each (default: 256)"}),
    "--text": ("calibration.text", {"help": "c4, or a .jsonl or .txt file (default: c4)"}),
    "--sequences": ("calibration.sequences", {"type": int, "help": "sequences of the text (default: 128)"}),
    "--steps": ("steps", {"type": int, "help": "steps of first-order fine-tuning to follow (default: 0)"}),
    "--every": ("every", {"type": int, "help": "steps from one look to the next (default: a tenth of them)"}),
    "--optimizer": ("optimizer", {"choices": ["adam", "sgd"], "help": "default: adam"}),
    "--lr": ("lr", {"type": float, "help": "learning rate (default: 1e-5)"}),
    "--batch": ("batch", {"type": int, "help": "rows of each step (default: 16)"}),
    "--revision": ("revision", {"help": "hub revision (default: the default branch)"}),
    "--gguf-file": ("gguf_file", {"metavar": "FILE", "help": "the GGUF file in the folder or repository to take"}),
}
# These go to text and task alike.
_SHARED_OPTIONS: OptionTable = {
    "--tokens": ("tokens_per_sequence", {"type": int, "help": "tokens of each sequence, at most (default: 512)"}),
    "--seed": ("seed", {"type": int, "help": "seed of the choice of documents, rows and batches (default: 0)"}),
}


def add_coverage(reports: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the report to ``zo-cloud report``."""
    parser = reports.add_parser(
        "coverage",
        help="how much of a task's sensitivity a text's mask covers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="hub id, a Hugging Face folder, or a .gguf file")
    add_options(parser, {**_OPTIONS, **_SHARED_OPTIONS})
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="where page, figure, data and checkpoints go (default: nowhere, and a temporary folder)",
    )
    add_means_options(parser)
    add_source_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    parser.set_defaults(run=_run)


def request_of(arguments: argparse.Namespace) -> CoverageRequest:
    """Return the request that the options describe. Raises InvalidRequest where one is out of range."""
    from cloud_service.studies.coverage_run import CoverageRequest
    from shared.api import OWN_ROWS

    document: dict[str, Any] = {"model": arguments.model, "task": {"task": OWN_ROWS}, "calibration": {}}
    fill(document, _OPTIONS, arguments)
    for spec in (document["task"], document["calibration"]):
        fill(spec, _SHARED_OPTIONS, arguments)
    return checked_request(CoverageRequest, document, {**_OPTIONS, **_SHARED_OPTIONS}, arguments)


def _run(arguments: argparse.Namespace) -> None:
    from cloud_service.commands.progress import terminal_progress
    from cloud_service.studies.coverage_report import coverage_document, coverage_table
    from cloud_service.studies.coverage_run import run_coverage

    request, policy, means = request_of(arguments), local_sources(arguments), means_of(arguments)
    with _workspace(arguments.output) as workspace, terminal_progress(is_quiet=arguments.quiet) as progress:
        measured = run_coverage(request, policy, progress, workspace=workspace, means=means)
    document = coverage_document(measured.coverage, measured.about)
    if arguments.output is not None:
        _write(arguments.output, measured, document)
    print(json.dumps(document) if arguments.json else coverage_table(document))  # noqa: T201


@contextlib.contextmanager
def _workspace(output: Path | None) -> Iterator[Path | None]:
    """Yield the folder of the checkpoints, which no other process uses; None where nothing is kept."""
    if output is None:
        yield None
        return
    busy = Conflict(f"another report works in {output}", next_step="wait for it, or give another --output")
    with exclusive(output / ".coverage.lock", busy=busy):
        yield output / ".coverage"


def _write(folder: Path, measured: MeasuredCoverage, document: dict[str, Any]) -> None:
    from cloud_service.studies.coverage_report import coverage_page, coverage_picture, criterion_labels
    from shared.durable_files import disk_errors, write_atomically

    labels = criterion_labels(document["text"], document["task"])
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "coverage.json", json.dumps(document, indent=1).encode())
        write_atomically(folder / "coverage.svg", coverage_picture(measured.coverage, labels))
        write_atomically(folder / "coverage.html", coverage_page(document, measured.coverage, labels))
    print(f"written to {folder / 'coverage.html'}", file=sys.stderr)  # noqa: T201
