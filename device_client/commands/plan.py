"""``zo-device plan``: what a tuning step will need, by part, and the micro-batch that a budget allows."""

from __future__ import annotations

import argparse
from typing import Any

from device_client.console import Console
from device_client.model.memory_plan import Workload, choose_micro_batch
from device_client.settings import Settings
from device_client.store import resolve_bundle
from shared.byte_sizes import format_bytes, parse_bytes
from shared.errors import InvalidRequest

NAME = "plan"
HELP = "predict the memory that tuning needs, before loading anything"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``plan``."""
    parser.add_argument("ref", nargs="?", metavar="REF", help="the bundle; may be left out where there is only one")
    parser.add_argument("--memory-budget", default="8GiB", metavar="SIZE", help="what may be used (8GiB)")
    parser.add_argument("--length", type=int, metavar="L", help="tokens of the longest row (the bundle's context)")
    parser.add_argument("--rows", type=int, default=16, metavar="B", help="rows of a batch (16)")
    parser.add_argument("--answers", type=int, default=1, metavar="A", help="scored tokens of each row (1)")
    parser.add_argument("--device", metavar="NAME", help="cpu or cuda (CUDA where there is one)")


def run(arguments: argparse.Namespace, console: Console, settings: Settings) -> dict[str, Any]:
    """Print the predicted bytes by part and return them."""
    from device_client.model.loader import resolve_device

    budget = parse_bytes(arguments.memory_budget)
    bundle = resolve_bundle(settings, arguments.ref)
    device_type = resolve_device(arguments.device).type
    length = bundle.config.tokenizer.context_length if arguments.length is None else arguments.length
    most = _workload(arguments.rows, length, arguments.answers)
    plan = choose_micro_batch(bundle.config, most, budget_bytes=budget, device_type=device_type)
    rows = [(part, format_bytes(count), f"{count:,}") for part, count in plan.parts.items()]
    rows.append(("in all", format_bytes(plan.total_bytes), f"{plan.total_bytes:,}"))
    console.table(f"{plan.workload.rows} × {length} tokens on {device_type}", ("part", "size", "bytes"), rows)
    console.say(f"Micro-batch: {plan.workload.rows} of {most.rows} rows at a time within {format_bytes(budget)}.")
    return {
        "bundle": bundle.digest,
        "device": device_type,
        "rows": most.rows,
        "columns": length,
        "micro_batch_rows": plan.workload.rows,
        "budget_bytes": budget,
        "total_bytes": plan.total_bytes,
        "parts": plan.parts,
    }


def _workload(rows: int, columns: int, answers: int) -> Workload:
    if min(rows, columns, answers) < 1:
        raise InvalidRequest(f"{rows} rows of {columns} tokens, {answers} scored", needed="at least 1 of each")
    return Workload(rows, columns, answers)
