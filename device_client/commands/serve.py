"""``zo-device serve``: a bundle and its runs behind OpenAI's interface, for editors, scripts and chat programs here.

Listens on a loopback address alone and opens no connection. Every run of the bundle is a model of its own name beside
the bundle itself; their values are swapped in, the weights are in memory once.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from device_client.commands.machine_arguments import add_machine_arguments, machine
from device_client.console import Console
from device_client.settings import Settings
from device_client.store import resolve_bundle, resolve_reference
from shared.errors import DataError, InvalidRequest, ZoError

if TYPE_CHECKING:
    from device_client.model.sparse_model import SparseModel
    from device_client.planning.methods import MethodName
    from device_client.tuning.run_directory import RunDirectory
    from shared.bundle.read import Bundle

NAME = "serve"
HELP = "answer OpenAI's interface on this machine (127.0.0.1), for editors, scripts and chat programs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what is served, where, and to whom."""
    parser.add_argument("ref", metavar="REF", nargs="?", help="the bundle (default: the only one)")
    parser.add_argument(
        "--run", action="append", dest="runs", metavar="RUN",
        help="serve this run beside the bundle; may be given several times (default: every run of the bundle)",
    )  # fmt: skip
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="a loopback address (127.0.0.1)")
    parser.add_argument("--port", type=int, default=8081, metavar="N", help="0 takes a free one (8081)")
    parser.add_argument(
        "--api-key-file", type=Path, metavar="FILE",
        help="callers must send the key in this file as Authorization: Bearer KEY (default: every program of this "
        "machine may ask)",
    )  # fmt: skip
    add_machine_arguments(parser)


def run(arguments: argparse.Namespace, console: Console, settings: Settings) -> dict[str, Any]:
    """Load, listen and answer until a signal.

    Raises:
        InvalidRequest: The address is not a loopback address, or no socket may be opened.
        Conflict: The port is in use.
        DataError: The key's file holds no key.
        ResourceError: The model does not fit the memory budget.
    """
    if settings.is_offline:
        raise InvalidRequest(
            "serve with --offline, which opens no socket at all",
            needed="a loopback socket to listen on; serve never connects to anything",
            next_step="leave --offline out",
        )
    bundle = resolve_bundle(settings, arguments.ref)
    name = resolve_reference(settings.store, arguments.ref)[0].removesuffix(":latest")
    api_key = None if arguments.api_key_file is None else _read_key(arguments.api_key_file)
    try:
        from device_client.serving.app import make_app
        from device_client.serving.server import listening, serve_until_signal
    except ModuleNotFoundError as error:
        raise InvalidRequest(
            f"serve needs {error.name}, which is not installed",
            needed="fastapi and uvicorn",
            next_step="pip install 'zo-device[device,serve]'",
        ) from error
    with listening(arguments.host, arguments.port) as listener:
        from device_client.serving.answers import Answers
        from device_client.serving.asked import Asker
        from device_client.serving.models import ServedModels

        runs = _runs(arguments, settings, bundle, console)
        console.say(f"Loading {name} …")
        model = _load(arguments, console, settings, bundle, runs)
        models = ServedModels(model, name, int(bundle.layout.blob_path(bundle.digest).stat().st_mtime), runs)
        queue = _queue(arguments, console, settings, model, models)
        address, port = listener.getsockname()[:2]
        url = f"http://{f'[{address}]' if ':' in address else address}:{port}/v1"
        names = [served.name for served in models.all]

        def tell_ready() -> None:
            console.say(f"Models: {', '.join(names)}")
            console.say(f"Serving OpenAI's interface at {url}; Ctrl-C ends it.")

        begin = time.monotonic()
        app = make_app(models, Asker(models, model.tokenizer), Answers(queue, model.tokenizer), api_key)
        serve_until_signal(app, queue, listener, tell_ready)
    return {
        "url": url,
        "models": names,
        "seconds": time.monotonic() - begin,
        "peak_memory_bytes": model.memory.peak_bytes,
    }


def _runs(arguments: argparse.Namespace, settings: Settings, bundle: Bundle, console: Console) -> list[RunDirectory]:
    """Return the runs that were named, or every usable one of the bundle."""
    from device_client.tuning.run_directory import CONFIG, RunDirectory, find_run

    if arguments.runs:
        return [find_run(settings.runs, name, bundle) for name in dict.fromkeys(arguments.runs)]
    found = []
    for folder in sorted(settings.runs.iterdir()) if settings.runs.is_dir() else ():
        run = RunDirectory(folder)
        try:
            is_of_bundle = (run.read_json(CONFIG) or {}).get("bundle_digest") == bundle.digest
            if is_of_bundle and run.read_theta("best.safetensors") is not None:
                found.append(run)
        except ZoError as error:
            console.warn(f"run {folder.name} is left out: {error.found}")
    return found


def _load(
    arguments: argparse.Namespace, console: Console, settings: Settings, bundle: Bundle, runs: list[RunDirectory]
) -> SparseModel:
    from device_client.model.open import open_for_text
    from device_client.tuning.tuned_values import part_of_run

    has_prefix = any(part_of_run(run, bundle.config).method.name == "prefix" for run in runs)
    method: MethodName = "prefix" if has_prefix else "sparse"  # a prefix needs transformers' network
    return open_for_text(bundle, machine(arguments, console, settings), method)


def _queue(arguments: argparse.Namespace, console: Console, settings: Settings, model: SparseModel, models: Any) -> Any:
    from device_client.model.decoding.reader import reader_of
    from device_client.planning.memory_plan import text_memory
    from device_client.serving.text_queue import MOST_TEXTS, PROMPT_PART_TOKENS, TextQueue

    room_bytes, token_bytes = text_memory(
        model.config,
        machine(arguments, console, settings).memory_budget_bytes or 0,
        model.device.type,
        model.compute_dtype.itemsize,
        model.backend_name,
        PROMPT_PART_TOKENS + MOST_TEXTS,
    )
    return TextQueue(reader_of(model), models, model.tokenizer, token_bytes, room_bytes)


def _read_key(path: Path) -> str:
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}", needed="a text file with a key in it") from error
    if not key or not key.isprintable() or " " in key:
        raise DataError(f"{path} holds no key", needed="one line of printable characters", next_step="write one there")
    return key
