"""``zo-device plan``: what a tuning step will need, by part, and what a budget allows to run side by side."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from device_client.commands.machine_arguments import add_machine_arguments, compute_dtype
from device_client.console import Console
from device_client.model.backends.planned_bytes import planned_backend
from device_client.model.workload import PAIRED_UP_TO_TOKENS, Workload
from device_client.settings import Settings
from device_client.store import resolve_bundle
from shared.byte_sizes import format_bytes, parse_bytes
from shared.errors import InvalidRequest

if TYPE_CHECKING:
    from device_client.tuning.memory_fit import MemoryFit

NAME = "plan"
HELP = "predict the memory that tuning needs, before loading anything"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``plan``."""
    parser.add_argument("ref", nargs="?", metavar="REF", help="the bundle; may be left out where there is only one")
    parser.add_argument("--length", type=int, metavar="L", help="tokens of the longest row (the bundle's context)")
    parser.add_argument("--rows", type=int, default=16, metavar="B", help="sequences of a batch (16)")
    parser.add_argument("--answers", type=int, default=1, metavar="A", help="scored tokens of each sequence (1)")
    parser.add_argument("--queries", type=int, default=1, metavar="Q", help="directions of a step; 0 to evaluate (1)")
    add_machine_arguments(parser)


def run(arguments: argparse.Namespace, console: Console, settings: Settings) -> dict[str, Any]:
    """Print the predicted bytes by part and return them.

    Raises:
        InvalidRequest: A number is out of range.
        ResourceError: Not even one sequence fits the budget, or there is no such device or backend.
    """
    budget = parse_bytes(arguments.memory_budget)
    most = _workload(arguments)
    bundle = resolve_bundle(settings, arguments.ref)

    from device_client.model.loader import resolve_device
    from device_client.tuning.memory_fit import fit_to_memory

    length = most.columns if arguments.length is not None else bundle.config.tokenizer.context_length
    most = Workload(most.rows, length, most.answers_per_row, queries=most.queries)
    device_type = resolve_device(arguments.device).type
    fit = fit_to_memory(
        bundle.config, most, budget_bytes=budget, device=arguments.device, backend=arguments.backend,
        compute_dtype=compute_dtype(arguments),
    )  # fmt: skip
    backend = planned_backend(fit.plan.backend, device_type, 2 if arguments.dtype == "bfloat16" else 4)
    is_any_kept = any(backend.is_decoded(entry) for entry in bundle.config.block_tensors)
    _show(console, fit, most, device_type, budget)
    if is_any_kept:
        console.say(f"Left for decoded weights: {format_bytes(fit.decoded_cache_bytes)}.")
    return {
        "bundle": bundle.digest,
        "device": device_type,
        "backend": fit.plan.backend,
        "rows": most.rows,
        "columns": length,
        "answers_per_row": most.answers_per_row,
        "queries": most.queries,
        "micro_batch_rows": fit.micro_batch_rows,
        "points_at_once": fit.points_at_once,
        "decoded_cache_bytes": fit.decoded_cache_bytes if is_any_kept else 0,
        "budget_bytes": budget,
        "total_bytes": fit.plan.total_bytes,
        "parts": fit.plan.parts,
    }


def _show(console: Console, fit: MemoryFit, most: Workload, device_type: str, budget: int) -> None:
    rows = [(part, format_bytes(count), f"{count:,}") for part, count in fit.plan.parts.items()]
    rows.append(("in all", format_bytes(fit.plan.total_bytes), f"{fit.plan.total_bytes:,}"))
    widest = fit.plan.workload
    shape = f"{widest.points} × {widest.rows} × {widest.columns} tokens"
    console.table(f"{shape} on {device_type}, {fit.plan.backend} backend", ("part", "size", "bytes"), rows)
    console.say(
        f"Micro-batch: {fit.micro_batch_rows} of {most.rows} sequences at a time within {format_bytes(budget)}; "
        f"{fit.points_at_once} of {max(1, 2 * most.queries)} points side by side"
        + (f" in passes of up to {PAIRED_UP_TO_TOKENS[device_type]:,} tokens." if fit.points_at_once > 1 else ".")
    )


def _workload(arguments: argparse.Namespace) -> Workload:
    """Return the shape that was asked for, of one column where the bundle's context decides."""
    length = 1 if arguments.length is None else arguments.length
    if min(arguments.rows, length, arguments.answers) < 1 or arguments.queries < 0:
        raise InvalidRequest(
            f"--rows {arguments.rows} --length {length} --answers {arguments.answers} --queries {arguments.queries}",
            needed="at least 1 row, token and answer, and no negative number of queries",
            next_step="zo-device plan --help",
        )
    return Workload(arguments.rows, length, arguments.answers, queries=arguments.queries)
