"""``zo-cloud prepare MODEL --output DIR``: the whole pipeline in this process, without a service.

DIR/                an OCI image layout with the signed bundle; ``zo-device import DIR`` reads it
DIR/report.html     the report as a page, and report.json as data
DIR/run.json        how it went: the plan against actual memory and time
DIR/.workspace      checkpoints; the same command goes on from them after a kill, and they are gone at the end
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from cloud_service.commands.device_option import add_device_option
from cloud_service.commands.label_words import label_words
from cloud_service.commands.local_sources import add_source_options, local_sources
from cloud_service.commands.means import add_means_options, means_of
from cloud_service.commands.output_folder import removed_where_refused
from cloud_service.commands.request_options import OptionTable, add_options, checked_request, fill
from cloud_service.request_words import OPTION_FIELDS
from shared.errors import Conflict, InvalidRequest
from shared.file_lock import exclusive

if TYPE_CHECKING:
    from cloud_service.pipeline.prepare import PreparedBundle
    from cloud_service.progress import ProgressSink
    from cloud_service.storage.signing_keys import SigningKey
    from shared.api import PrepareRequest
    from shared.bundle.layout import ImageLayout

MAX_EXPIRES_DAYS = 3650
_WORKSPACE = ".workspace"

# What argparse is told of each option; the request's own rules check the values.
_SETTINGS: dict[str, dict[str, Any]] = {
    "--revision": {"help": "hub revision (default: the default branch)"},
    "--gguf-file": {"metavar": "FILE", "help": "the GGUF file in the folder or repository to take"},
    "--name": {"help": "name to publish under (default: derived from the model)"},
    "--tag": {"help": "tag to publish under (default: latest)"},
    "--sparsity": {"type": float, "help": "share of sensitive weights (default: 0.001)"},
    "--scope": {"choices": ["per_tensor", "global"], "help": "where exactly k are chosen"},
    "--mask-source": {"choices": ["fisher", "magnitude", "random"], "help": "how they are chosen"},
    "--quantizer": {
        "choices": ["lut", "shared", "uniform", "rtn", "source"],
        "help": "codec of the dense part; source keeps the codes of a Q4_0 or Q4_1 GGUF file exactly",
    },
    "--bits": {"type": int, "choices": [2, 3, 4, 8], "help": "bits per dense weight (default: 4)"},
    "--group-size": {"type": int, "help": "columns per group for all but lut"},
    "--compensation": {
        "choices": ["none", "gptq", "refit"],
        "help": "gptq: let later columns make up for errors; refit: and fit codebooks and codes to each other again",
    },
    "--embedding-bits": {
        "type": int,
        "choices": [16, 8, 4],
        "help": "bits per number of token embedding and head (default: 8)",
    },
    "--calibration-text": {
        "help": "c4, self (the model writes it), a .jsonl or .txt file; of a task: the folder of the tasks, or a file "
        "of rows (default: c4)"
    },
    "--calibration-task": {
        "metavar": "TASK",
        "help": "calibrate on task rows: SST-2, RTE, CB, BoolQ, WSC, WiC, COPA, or rows for your own",
    },
    "--template": {"help": 'of labelled rows, for example "{text} It was {label}"'},
    "--label-words": {
        "type": label_words,
        "metavar": "LABEL=WORD,…",
        "help": "of labelled rows: the words that stand for the labels",
    },
    "--sequences": {"type": int, "help": "calibration sequences (default: 128)"},
    "--tokens": {"type": int, "help": "tokens of each (default: 512)"},
    "--seed": {"type": int, "help": "seed of the choice of documents or rows (default: 0)"},
    "--evaluation-text": {"help": "held-out text (default: the calibration text's first part; c4 for a task)"},
    "--evaluation-documents": {"type": int, "help": "0 evaluates nothing (default: 200)"},
    "--allow-untested": {"action": "store_true", "help": "take a model whose family nobody tests; its bundle says so"},
}
_OPTIONS: OptionTable = {option: (field, _SETTINGS[option]) for option, field in OPTION_FIELDS.items()}


def add_prepare_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("prepare", help="prepare a model here, without a service", description=__doc__,
                                 formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument(
        "model", help="hub id (hub:ID where there is a folder of that name), a Hugging Face folder, or a .gguf file"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where the bundle goes")
    add_request_options(parser)
    add_means_options(parser)
    add_device_option(parser)
    parser.add_argument("--signing-key", type=Path, metavar="PEM", help="default: the service's; made where missing")
    parser.add_argument(
        "--expires-days",
        type=int,
        default=365,
        metavar="DAYS",
        help="how long devices may take this bundle for the newest of its tag; then publish again (default: 365)",
    )
    add_source_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    parser.set_defaults(run=_run)


def add_request_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that describe a request, beside its model."""
    add_options(parser, _OPTIONS)


def request_of(arguments: argparse.Namespace) -> PrepareRequest:
    """Return the request that the options describe. Raises InvalidRequest where one is out of range."""
    from shared.api import PrepareRequest

    document: dict[str, Any] = {"model": arguments.model}
    fill(document, _OPTIONS, arguments)
    return checked_request(PrepareRequest, document, _OPTIONS, arguments)


def _run(arguments: argparse.Namespace) -> None:
    from cloud_service.commands.progress import terminal_progress
    from cloud_service.settings import load_settings
    from cloud_service.storage.signing_keys import open_signing_key
    from shared.bundle.layout import ImageLayout
    from shared.bundle.write import remove_unfinished

    request = request_of(arguments)
    if not 1 <= arguments.expires_days <= MAX_EXPIRES_DAYS:
        raise InvalidRequest(
            f"--expires-days {arguments.expires_days}",
            needed=f"1 … {MAX_EXPIRES_DAYS}",
            next_step="give a number of days in that range, or leave the option out for 365",
            param="expires-days",
        )
    workspace = arguments.output / _WORKSPACE
    with removed_where_refused(arguments.output), _sole_worker(workspace), _sigterm_interrupts():
        key = open_signing_key(arguments.signing_key or load_settings().signing_key)  # before hours of work
        layout = ImageLayout.create(arguments.output)
        remove_unfinished(layout)
        with terminal_progress(is_quiet=arguments.quiet) as progress:
            made = _prepare(arguments, request, layout, workspace, progress)
        _publish(arguments, layout, made, key)
        shutil.rmtree(workspace)
    _print(arguments, made, key.fingerprint)


def _prepare(
    arguments: argparse.Namespace,
    request: PrepareRequest,
    layout: ImageLayout,
    workspace: Path,
    progress: ProgressSink,
) -> PreparedBundle:
    from cloud_service.pipeline.prepare import prepare

    return prepare(
        request,
        workspace=workspace,
        layout=layout,
        progress=progress,
        sources=local_sources(arguments),
        means=means_of(arguments, device=arguments.device),
    )


def _publish(arguments: argparse.Namespace, layout: ImageLayout, made: PreparedBundle, key: SigningKey) -> None:
    """Validate the bundle, write the report, then sign and tag."""
    from cloud_service.storage.releases import published_statement, sign_tag
    from shared.bundle.read import read_bundle
    from shared.bundle.signature import signature_tag
    from shared.durable_files import disk_errors, write_atomically

    read_bundle(layout, made.manifest.digest)
    previous = published_statement(layout, made.name, made.tag)
    signature = sign_tag(
        layout,
        key,
        made.name,
        made.tag,
        made.manifest,
        previous=previous.version if previous else None,
        now=datetime.now(UTC),
        lifetime=timedelta(days=arguments.expires_days),
    )
    with disk_errors(arguments.output):
        write_atomically(arguments.output / "report.html", made.report_html.read_bytes())
        write_atomically(arguments.output / "run.json", json.dumps(made.run.to_json(), indent=1).encode())
        write_atomically(arguments.output / "report.json", json.dumps(made.report, indent=1, sort_keys=True).encode())
    beside = f"{made.name}:{signature_tag(made.manifest.digest)}"
    layout.update({f"{made.name}:{made.tag}": made.manifest, beside: signature})


def _print(arguments: argparse.Namespace, made: PreparedBundle, signer: str) -> None:
    fields = {
        "name": made.name,
        "tag": made.tag,
        "digest": made.manifest.digest,
        "size_bytes": made.size_bytes,
        "signed_by": signer,
        "layout": str(arguments.output),
        "report": str(arguments.output / "report.html"),
    }
    text = "\n".join(f"{name.replace('_', ' '):<10} {value}" for name, value in fields.items())
    print(json.dumps(fields) if arguments.json else text)  # noqa: T201


def _sole_worker(workspace: Path) -> contextlib.AbstractContextManager[None]:
    """Keep other processes out of the workspace; the lock lies beside it."""
    busy = Conflict(
        f"another zo-cloud prepare works in {workspace.parent}", next_step="wait for it, or give another --output"
    )
    return exclusive(workspace.with_name(f"{workspace.name}.lock"), busy=busy)


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM stop the work as Ctrl-C does."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
