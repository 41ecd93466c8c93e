"""``zo-cloud report quantizers MODEL --output DIR``: which quantiser, and how many bits, does this model need?

One Fisher pass; then every method at every width quantises the model, which is evaluated with and without its
sensitive values. Memory is planned as ``zo-cloud prepare`` plans it. A killed run goes on where it was; a longer list
of methods or bits adds to what is there.

DIR/quantizers.html   the page; quantizers.svg the plot, quantizers.json the data
DIR/.combinations     what is finished; .workspace, the checkpoints, is gone at the end
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloud_service.commands.local_sources import add_source_options, local_sources
from cloud_service.commands.means import add_means_options, means_of
from cloud_service.commands.request_options import OptionTable, add_options, checked_request, fill

if TYPE_CHECKING:
    from cloud_service.studies.quantizer_sweep import Sweep, SweepRequest


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(text: str) -> list[int]:
    try:
        return [int(word) for word in _words(text)]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers such as 2,3,4") from error


# Where each option goes in SweepRequest; the request's own rules check the values.
_OPTIONS: OptionTable = {
    "--methods": (
        "methods",
        {"type": _words, "metavar": "LIST", "help": "of lut, shared, uniform, rtn (default: not shared)"},
    ),
    "--bits": ("bits", {"type": _numbers, "metavar": "LIST", "help": "of 2, 3, 4, 8 (default: all)"}),
    "--compensation": (
        "compensations",
        {"type": _words, "metavar": "LIST", "help": "of none, gptq, refit (default: gptq)"},
    ),
    "--group-size": ("group_size", {"type": int, "help": "columns per group for all but lut (default: 64)"}),
    "--sparsity": ("sparsity", {"type": float, "help": "share of sensitive weights (default: 0.001)"}),
    "--scope": ("scope", {"choices": ["per_tensor", "global"], "help": "where exactly k are chosen"}),
    "--calibration-text": ("calibration.text", {"help": "c4, or a .jsonl or .txt file (default: c4)"}),
    "--sequences": ("calibration.sequences", {"type": int, "help": "calibration sequences (default: 128)"}),
    "--tokens": ("calibration.tokens_per_sequence", {"type": int, "help": "tokens of each (default: 512)"}),
    "--seed": ("calibration.seed", {"type": int, "help": "seed of the choice of documents (default: 0)"}),
    "--evaluation-text": ("evaluation.text", {"help": "held-out text (default: the calibration text's first part)"}),
    "--evaluation-documents": ("evaluation.documents", {"type": int, "help": "at least 1 (default: 200)"}),
    "--revision": ("revision", {"help": "hub revision (default: the default branch)"}),
    "--gguf-file": ("gguf_file", {"metavar": "FILE", "help": "the GGUF file in the folder or repository to take"}),
}


def add_quantizers(reports: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the report to ``zo-cloud report``."""
    parser = reports.add_parser(
        "quantizers",
        help="perplexity of every quantiser at every width",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="hub id, a Hugging Face folder, or a .gguf file")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where page, plot and data go")
    add_options(parser, _OPTIONS)
    add_means_options(parser)
    add_source_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    parser.set_defaults(run=_run)


def request_of(arguments: argparse.Namespace) -> SweepRequest:
    """Return the request that the options describe. Raises InvalidRequest where one is out of range."""
    from cloud_service.studies.quantizer_sweep import SweepRequest

    document: dict[str, Any] = {"model": arguments.model}
    fill(document, _OPTIONS, arguments)
    return checked_request(SweepRequest, document, _OPTIONS, arguments)


def _run(arguments: argparse.Namespace) -> None:
    from cloud_service.commands.progress import terminal_progress
    from cloud_service.studies.quantizer_sweep import run_sweep
    from cloud_service.studies.quantizer_sweep_report import sweep_document, sweep_table

    request, policy, means = request_of(arguments), local_sources(arguments), means_of(arguments)
    with terminal_progress(is_quiet=arguments.quiet) as progress:
        sweep = run_sweep(request, folder=arguments.output, policy=policy, progress=progress, means=means)
    _write(arguments.output, sweep)
    print(json.dumps(sweep_document(sweep)) if arguments.json else sweep_table(sweep))  # noqa: T201


def _write(folder: Path, sweep: Sweep) -> None:
    from cloud_service.studies.quantizer_sweep_report import sweep_document, sweep_page, sweep_svg
    from shared.durable_files import disk_errors, write_atomically

    with disk_errors(folder):
        write_atomically(folder / "quantizers.json", json.dumps(sweep_document(sweep), indent=1).encode())
        write_atomically(folder / "quantizers.svg", sweep_svg(sweep))
        write_atomically(folder / "quantizers.html", sweep_page(sweep))
    print(f"written to {folder / 'quantizers.html'}", file=sys.stderr)  # noqa: T201
