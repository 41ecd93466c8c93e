"""How much may run side by side within a memory budget, for a tuning run and for an evaluation alike.

    rows      the largest micro-batch that fits with one point
    points    then the largest of 2q, 2 and 1 that fits with those rows, or with as many as may run side by side

Rows come first and alone: they decide the last bits of a loss, which points do not. Predicted from shapes before
anything is loaded; see ``memory_plan``. What the plan leaves of the budget may hold decoded weights.
Knows nothing about runs or files.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from device_client.devices import DEFAULT_DTYPES, DTYPE_BYTES
from device_client.planning.memory_plan import (
    KEPT_STATES,
    MemoryPlan,
    check_budget,
    choose_micro_batch,
    plan_memory,
    spare_bytes,
    state_bytes,
)
from device_client.planning.methods import MethodName
from device_client.planning.tuned_blocks import ALL_BLOCKS
from device_client.planning.workload import PAIRED_UP_TO_TOKENS, Workload
from shared.bundle.config import BundleConfig
from shared.tasks.examples import Example


@dataclass(frozen=True, slots=True)
class MemoryFit:
    """What the memory budget allows.

    Attributes:
        micro_batch_rows: Sequences that run side by side.
        points_at_once: θ's that run side by side.
        decoded_cache_bytes: What is left for decoded weights, so that they need not be decoded on each pass.
        kept_states_bytes: What of it hidden states below the tuned blocks take first, between steps.
        plan: The predicted bytes.
    """

    micro_batch_rows: int
    points_at_once: int
    decoded_cache_bytes: int
    kept_states_bytes: int
    plan: MemoryPlan


def fit_to_memory(
    config: BundleConfig,
    most: Workload,
    *,
    budget_bytes: int | None,
    device_type: str,
    value_bytes: int | None = None,
    micro_batch_rows: int | None = None,
    backend: str = "auto",
) -> MemoryFit:
    """Return the micro-batch, as asked or the largest that the budget's plan allows, the points, and what is left.

    Args:
        config: The bundle's configuration.
        most: All sequences side by side, and the queries of a step; its points are not looked at.
        budget_bytes: None has no limit.
        device_type: ``cpu`` or ``cuda``.
        value_bytes: Bytes of one value; None takes the device's default compute dtype.
        micro_batch_rows: What was asked for; None takes the largest that fits.
        backend: ``reference``, ``native``, ``triton``, or ``auto`` for the one that is probably chosen.

    Raises:
        ResourceError: The micro-batch does not fit the budget, or there is no such backend on the device.
    """

    def plan(workload: Workload) -> MemoryPlan:
        return plan_memory(config, workload, device_type=device_type, value_bytes=value_bytes, backend=backend)

    one_state = state_bytes(config, value_bytes or DTYPE_BYTES[DEFAULT_DTYPES[device_type]])
    alone = replace(most, rows=micro_batch_rows or most.rows, points=1, kept_tokens=0)
    most_tokens = PAIRED_UP_TO_TOKENS[device_type]
    if budget_bytes is None:
        points, unlimited = _most_points(plan, alone, most_tokens, sys.maxsize)
        return _with_states(MemoryFit(alone.rows, points, 0, 0, unlimited), most.kept_tokens, one_state)
    if micro_batch_rows is None:
        alone = choose_micro_batch(
            config, alone, budget_bytes=budget_bytes, device_type=device_type, value_bytes=value_bytes, backend=backend
        ).workload
    else:
        check_budget(plan(alone), budget_bytes)
    points, fitting = _most_points(plan, alone, most_tokens, budget_bytes)
    spare = spare_bytes(fitting, budget_bytes)
    fit = MemoryFit(alone.rows, points, spare, 0, fitting)
    return _with_states(fit, min(most.kept_tokens, spare // one_state), one_state)


def _with_states(fit: MemoryFit, kept_tokens: int, one_state: int) -> MemoryFit:
    """Return the fit with so many tokens' states kept out of what is left; they save more than decoded weights do."""
    if kept_tokens == 0:
        return fit
    kept = kept_tokens * one_state
    plan = fit.plan
    parts = plan.parts | {KEPT_STATES: plan.parts[KEPT_STATES] + kept}
    return replace(
        fit,
        decoded_cache_bytes=max(0, fit.decoded_cache_bytes - kept),
        kept_states_bytes=kept,
        plan=replace(plan, workload=replace(plan.workload, kept_tokens=kept_tokens), parts=parts),
    )


def point_counts(queries: int) -> tuple[int, ...]:
    """Return how many points are worth running side by side, the most first: both signs of all queries, or of one."""
    return tuple(sorted({2 * queries, 2, 1}, reverse=True)) if queries else (1,)


def side_by_side(
    examples: Sequence[Example],
    row_count: int,
    *,
    queries: int = 0,
    blocks: str = ALL_BLOCKS,
    answer_tokens: int = 0,
    method: MethodName = "sparse",
) -> Workload:
    """Return the shape of a pass that runs all sequences of ``row_count`` rows at once, each as long as the longest.

    Args:
        examples: At least one.
        row_count: Rows of a batch.
        queries: Directions of a tuning step; 0 for an evaluation.
        blocks: Which blocks are tuned; where not all are, the hidden states of all examples are worth keeping.
        answer_tokens: Most tokens of answers that the model writes, whose keys and values are held; 0 writes none.
        method: What is tuned of them.
    """
    sequences = max(1 if example.has_single_token_candidates else len(example.candidates) for example in examples)
    columns = max(max(example.token_count, len(example.prompt) + answer_tokens) for example in examples)
    is_upper = blocks != ALL_BLOCKS
    return Workload(
        rows=row_count * sequences,
        columns=columns,
        answers_per_row=max((len(candidate) for example in examples for candidate in example.candidates), default=1),
        cached_columns=columns if answer_tokens else 0,
        queries=queries,
        blocks=blocks,
        method=method,
        entering_tokens=row_count * sequences * columns if is_upper else 0,
        kept_tokens=sum(map(_tokens_of_sequences, examples)) if is_upper else 0,
    )


def _tokens_of_sequences(example: Example) -> int:
    """Return the tokens of all sequences that an example's answers are read from."""
    if example.has_single_token_candidates:
        return len(example.prompt)
    return sum(len(example.prompt) + len(candidate) - 1 for candidate in example.candidates)


def _most_points(
    plan: Callable[[Workload], MemoryPlan], alone: Workload, most_tokens: int, budget_bytes: int
) -> tuple[int, MemoryPlan]:
    """Return the most points that fit, and the plan of the hungriest pass: the longest rows alone, or points of others.

    Args:
        plan: Predicts.
        alone: All rows at one point, which fit.
        most_tokens: A pass of more tokens runs its points one after the other.
        budget_bytes: What may be used.
    """
    one = plan(alone)
    rows = min(alone.rows, most_tokens // alone.columns)
    for points in point_counts(alone.queries):
        if points == 1 or rows < 1:
            continue
        hungriest = max(one, plan(replace(alone, rows=rows, points=points)), key=lambda found: found.total_bytes)
        if hungriest.total_bytes <= budget_bytes:
            return points, hungriest
    return 1, one
