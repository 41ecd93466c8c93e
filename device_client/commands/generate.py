"""``zo-device generate``: continue a prompt with a bundle's model, as published or as tuned by a run."""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from device_client.commands.machine_arguments import add_machine_arguments, machine
from device_client.console import Console
from device_client.settings import Settings
from device_client.store import resolve_bundle
from shared.errors import InvalidRequest
from shared.perturbation import random_generator
from shared.terminal_text import printable

if TYPE_CHECKING:
    from device_client.model.sparse_model import SparseModel

NAME = "generate"
HELP = "continue a prompt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``generate``."""
    parser.add_argument("ref", metavar="REF", help="the bundle")
    parser.add_argument("prompt", metavar="PROMPT", help="the text to continue")
    parser.add_argument("--run", metavar="RUN", help="use the values tuned by this run (its id or folder)")
    parser.add_argument("--max-new-tokens", type=int, default=128, metavar="N", help="at most so many tokens (128)")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 takes the likeliest token (0)")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="sample from the likeliest P (1)")
    parser.add_argument("--seed", type=int, metavar="S", help="repeat a sample (drawn anew and printed)")
    add_machine_arguments(parser)


def run(arguments: argparse.Namespace, console: Console, settings: Settings) -> dict[str, Any]:
    """Stream the continuation (to stdout; with ``--json`` to nowhere) and return text and figures."""
    from device_client.devices import dtype_name

    _check_options(arguments)
    seed = secrets.randbits(32) if arguments.seed is None else arguments.seed
    model = _load(arguments, console, settings)
    prompt_ids = model.tokenizer.encode_prompt(arguments.prompt)
    ids: list[int] = []
    begin = time.monotonic()
    for piece in model.tokenizer.decode_stream(_remember(ids, _tokens(model, prompt_ids, arguments, seed))):
        if not arguments.json:
            sys.stdout.write(printable(piece))
            sys.stdout.flush()
    seconds = time.monotonic() - begin
    if not arguments.json:
        sys.stdout.write("\n")
    console.say(f"{len(ids)} tokens in {seconds:.1f} s" + (f", seed {seed}" if arguments.temperature > 0 else ""))
    return {
        "text": model.tokenizer.decode(ids),
        "backend": model.backend_name,
        "compute_dtype": dtype_name(model.compute_dtype),
        "prompt_tokens": len(prompt_ids),
        "new_tokens": len(ids),
        "seconds": seconds,
        "tokens_per_second": len(ids) / seconds if seconds > 0 else None,
        "seed": seed if arguments.temperature > 0 else None,
        "peak_memory_bytes": model.memory.peak_bytes,
    }


def _check_options(arguments: argparse.Namespace) -> None:
    wrong = [
        fault
        for fault, is_wrong in (
            (f"--max-new-tokens {arguments.max_new_tokens}", arguments.max_new_tokens < 1),
            (f"--temperature {arguments.temperature}", not 0 <= arguments.temperature < float("inf")),
            (f"--top-p {arguments.top_p}", not 0 < arguments.top_p <= 1),
            (f"--seed {arguments.seed}", arguments.seed is not None and not 0 <= arguments.seed < 1 << 64),
        )
        if is_wrong
    ]
    if wrong:
        raise InvalidRequest(
            wrong[0], needed="N ≥ 1, T ≥ 0, 0 < P ≤ 1, 0 ≤ S < 2^64", next_step="zo-device generate -h"
        )


def _load(arguments: argparse.Namespace, console: Console, settings: Settings) -> SparseModel:
    from device_client.model.open import open_for_text
    from device_client.tuning.run_directory import find_run, load_theta

    bundle = resolve_bundle(settings, arguments.ref)
    tuned = None if arguments.run is None else find_run(settings.runs, arguments.run, bundle)
    console.say(f"Loading {arguments.ref} …")
    model = open_for_text(bundle, machine(arguments, console, settings))
    if tuned is not None:
        model.write_theta(load_theta(tuned.path, sensitive_count=model.sensitive_count))
    return model


def _tokens(model: SparseModel, prompt_ids: list[int], arguments: argparse.Namespace, seed: int) -> Iterator[int]:
    return model.generate(
        prompt_ids,
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        generator=random_generator(seed),
        stop_ids=model.tokenizer.eos_ids,
    )


def _remember(ids: list[int], tokens: Iterator[int]) -> Iterator[int]:
    for token in tokens:
        ids.append(token)
        yield token
