"""``zo-device plan``: what a tuning step will need, by part, and what a budget allows to run side by side."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from device_client.commands.machine_arguments import add_machine_arguments, machine
from device_client.commands.objective_arguments import add_objective_arguments, asked_objective
from device_client.console import Console
from device_client.model.backends.planned_bytes import planned_backend
from device_client.planning.methods import METHODS, tuned_part
from device_client.planning.step_cost import step_cost
from device_client.planning.tuned_blocks import ALL_BLOCKS
from device_client.planning.workload import PAIRED_UP_TO_TOKENS, Workload
from device_client.settings import Settings
from device_client.store import resolve_bundle
from device_client.tuning.settings import TuneSettings
from shared.byte_sizes import format_bytes, parse_bytes
from shared.errors import InvalidRequest, ResourceError

if TYPE_CHECKING:
    from device_client.model.open import Machine
    from device_client.planning.memory_fit import MemoryFit
    from device_client.tuning.settings import Metric
    from shared.bundle.config import BundleConfig

SEQUENCES = 1500
"""What tuning a named task reads: 1,000 rows for training and 500 for validation."""

NAME = "plan"
HELP = "predict the memory that tuning needs, before loading anything"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``plan``."""
    parser.add_argument("ref", nargs="?", metavar="REF", help="the bundle; may be left out where there is only one")
    parser.add_argument(
        "--length", type=int, metavar="L",
        help="tokens of the longest row, or of the longest prompt where the model writes the answers (as many as the "
        "bundle's context holds)",
    )  # fmt: skip
    parser.add_argument("--rows", type=int, default=16, metavar="B", help="sequences of a batch (16)")
    parser.add_argument("--answers", type=int, default=1, metavar="A", help="scored tokens of each sequence (1)")
    parser.add_argument(
        "--method", choices=tuple(METHODS), default="sparse",
        help="what is tuned: the sensitive values, low-rank factors, or keys and values in front of texts (sparse)",
    )  # fmt: skip
    parser.add_argument(
        "--blocks", default=ALL_BLOCKS, metavar="WHICH",
        help="all, upper:N for the last N decoder blocks, or auto for the upper third (all)",
    )  # fmt: skip
    parser.add_argument(
        "--sequences", type=int, default=SEQUENCES, metavar="S",
        help="with --blocks upper:N: sequences of all rows, each kept as it enters the tuned blocks (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--queries", type=int, default=1, metavar="Q", help="directions of a step; 0 to evaluate (1)")
    add_objective_arguments(parser.add_argument_group("objective"))
    add_machine_arguments(parser)


def run(arguments: argparse.Namespace, console: Console, settings: Settings) -> dict[str, Any]:
    """Print the predicted bytes by part and return them.

    Raises:
        InvalidRequest: A number is out of range, or the method does not serve the objective.
        ResourceError: Not even one sequence fits the budget, or there is no such device or backend.
    """
    budget = parse_bytes(arguments.memory_budget)
    most = _workload(arguments)
    asked = asked_objective(arguments)
    TuneSettings(method=arguments.method, metric=asked.metric)  # refuses what tune refuses
    bundle = resolve_bundle(settings, arguments.ref)

    from device_client.devices import resolve_device
    from device_client.model.open import fit_workload

    context, written = bundle.config.tokenizer.context_length, asked.answer_tokens or 0
    length = most.columns if arguments.length is not None else max(1, context - written)
    columns = min(length + written, max(length, context))
    part = tuned_part(bundle.config, arguments.method, arguments.blocks)
    tuned = part.blocks
    most = replace(
        most, columns=columns, cached_columns=columns if written else 0, blocks=tuned.name, method=part.method.name
    )
    if tuned.first:
        most = replace(most, entering_tokens=most.tokens, kept_tokens=arguments.sequences * length)
    cost = step_cost(bundle.config, most)
    device_type = resolve_device(arguments.device).type
    usable = machine(arguments, console, settings)
    fit = fit_workload(bundle.config, usable, most)
    first_order = None if asked.metric else _first_order(bundle.config, usable, most)
    backend = planned_backend(fit.plan.backend, device_type, 2 if arguments.dtype == "bfloat16" else 4)
    is_any_kept = any(backend.is_decoded(entry) for entry in bundle.config.block_tensors)
    _show(console, fit, first_order, most, device_type, budget, asked.metric)
    if written:
        console.say(f"Objective {asked.metric}: the model writes up to {written} tokens behind {length} of a prompt.")
    if part.method.is_beside_weights:
        console.say(f"Tuned: {part.value_count:,} values of method {part.method.name}.")
    if tuned.first:
        console.say(
            f"Tuned: the last {tuned.count - tuned.first} of {tuned.count} blocks, {part.value_count:,} values. "
            + (
                "A step costs what it costs over all blocks: each token that the model writes goes through all of them"
                if written
                else f"A step costs {cost.kept:.0%} of one over all blocks, {cost.new:.0%} where its rows are new or "
                "not kept"
            )
            + f"; what enters the tuned blocks takes {format_bytes(fit.kept_states_bytes)} of memory for "
            f"{fit.plan.workload.kept_tokens // length:,} of {arguments.sequences:,} sequences."
        )
    if is_any_kept:
        console.say(f"Left for decoded weights: {format_bytes(fit.decoded_cache_bytes)}.")
    return {
        **({"metric": asked.metric, "answer_tokens": asked.answer_tokens} if asked.metric else {}),
        "bundle": bundle.digest,
        "device": device_type,
        "backend": fit.plan.backend,
        "rows": most.rows,
        "columns": columns,
        "answers_per_row": most.answers_per_row,
        "queries": most.queries,
        "blocks": tuned.name,
        "method": part.method.name,
        "tuned_values": part.value_count,
        "step_cost_share": cost.kept,
        "step_cost_share_of_new_rows": cost.new,
        "kept_states_bytes": fit.kept_states_bytes,
        "micro_batch_rows": fit.micro_batch_rows,
        "points_at_once": fit.points_at_once,
        "decoded_cache_bytes": fit.decoded_cache_bytes if is_any_kept else 0,
        "budget_bytes": budget,
        "total_bytes": fit.plan.total_bytes,
        "parts": fit.plan.parts,
        "first_order": None
        if first_order is None
        else {
            "micro_batch_rows": first_order.micro_batch_rows,
            "total_bytes": first_order.plan.total_bytes,
            "parts": first_order.plan.parts,
        },
    }


def _first_order(config: BundleConfig, usable: Machine, most: Workload) -> MemoryFit | None:
    """Return what steps along the exact gradient need, or None where there are none or not one sequence fits."""
    from device_client.model.open import fit_workload

    if most.queries == 0 or not METHODS[most.method].has_exact_gradient:
        return None
    try:
        return fit_workload(config, usable, replace(most, queries=0, is_differentiated=True))
    except ResourceError:
        return None


def _show(
    console: Console,
    fit: MemoryFit,
    first_order: MemoryFit | None,
    most: Workload,
    device_type: str,
    budget: int,
    metric: Metric | None,
) -> None:
    plans = [fit.plan] + ([first_order.plan] if first_order else [])
    columns = [column for name in ("zeroth order", "first order")[: len(plans)] for column in (name, "bytes")]
    parts = list(dict.fromkeys(part for plan in plans for part in plan.parts))
    rows = [(part, *_sizes([plan.parts.get(part) for plan in plans])) for part in parts]
    rows.append(("in all", *_sizes([plan.total_bytes for plan in plans])))
    widest = fit.plan.workload
    shape = f"{widest.points} × {widest.rows} × {widest.columns} tokens"
    console.table(f"{shape} on {device_type}, {fit.plan.backend} backend", ("part", *columns), rows)
    console.say(
        f"Micro-batch: {fit.micro_batch_rows} of {most.rows} sequences at a time within {format_bytes(budget)}; "
        f"{fit.points_at_once} of {max(1, 2 * most.queries)} points side by side"
        + (f" in passes of up to {PAIRED_UP_TO_TOKENS[device_type]:,} tokens." if fit.points_at_once > 1 else ".")
    )
    if first_order:
        console.say(f"First order: {first_order.micro_batch_rows} of {most.rows} sequences at a time, one point.")
    elif metric:
        console.say(f"First order: the objective {metric} has no gradient.")
    elif most.queries and METHODS[most.method].has_exact_gradient:
        console.say(f"First order does not fit {format_bytes(budget)}, not even with one sequence at a time.")


def _sizes(counts: list[int | None]) -> list[str]:
    return [text for count in counts for text in (("", "") if count is None else (format_bytes(count), f"{count:,}"))]


def _workload(arguments: argparse.Namespace) -> Workload:
    """Return the shape that was asked for, of one column where the bundle's context decides."""
    length = 1 if arguments.length is None else arguments.length
    if min(arguments.rows, length, arguments.answers, arguments.sequences) < 1 or arguments.queries < 0:
        raise InvalidRequest(
            f"--rows {arguments.rows} --length {length} --answers {arguments.answers} --queries {arguments.queries} "
            f"--sequences {arguments.sequences}",
            needed="at least 1 row, token, answer and sequence, and no negative number of queries",
            next_step="zo-device plan --help",
        )
    return Workload(arguments.rows, length, arguments.answers, queries=arguments.queries)
