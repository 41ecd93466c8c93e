"""The micro-batch that a memory budget allows, for a tuning run and for an evaluation alike.

Predicted from shapes before anything is loaded; see ``model.memory_plan``. What the plan leaves of the budget may hold
decoded weights. Knows nothing about runs or files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from device_client.model.loader import resolve_device
from device_client.model.memory_plan import Workload, check_budget, choose_micro_batch, plan_memory, spare_bytes
from shared.bundle.manifest import BundleConfig
from shared.tasks.examples import Example


@dataclass(frozen=True, slots=True)
class MemoryFit:
    """What the memory budget allows.

    Attributes:
        micro_batch_rows: Sequences that run side by side.
        decoded_cache_bytes: What is left for decoded weights, so that they need not be decoded on each pass.
    """

    micro_batch_rows: int
    decoded_cache_bytes: int


def fit_to_memory(
    config: BundleConfig,
    most: Workload,
    *,
    budget_bytes: int | None,
    device: str | None = None,
    compute_dtype: torch.dtype | None = None,
    micro_batch_rows: int | None = None,
) -> MemoryFit:
    """Return the micro-batch, as asked or the largest that the budget's plan allows, and what the plan leaves.

    Args:
        config: The bundle's configuration.
        most: All sequences side by side.
        budget_bytes: None has no limit.
        device: ``cpu``, ``cuda``, or None for what there is.
        compute_dtype: None takes the device's own.
        micro_batch_rows: What was asked for; None takes the largest that fits.

    Raises:
        ResourceError: The micro-batch does not fit the budget, or there is no such device.
    """
    if budget_bytes is None:
        return MemoryFit(micro_batch_rows or most.rows, decoded_cache_bytes=0)
    device_type = resolve_device(device).type
    value_bytes = compute_dtype.itemsize if compute_dtype else None
    if micro_batch_rows is None:
        plan = choose_micro_batch(
            config, most, budget_bytes=budget_bytes, device_type=device_type, value_bytes=value_bytes
        )
    else:
        asked = replace(most, rows=micro_batch_rows)
        plan = plan_memory(config, asked, device_type=device_type, value_bytes=value_bytes)
        check_budget(plan, budget_bytes)
    return MemoryFit(plan.workload.rows, spare_bytes(plan, budget_bytes))


def side_by_side(examples: Sequence[Example], row_count: int) -> Workload:
    """Return the shape of a pass that runs all sequences of ``row_count`` rows at once, each as long as the longest."""
    sequences = max(1 if example.has_single_token_candidates else len(example.candidates) for example in examples)
    return Workload(
        rows=row_count * sequences,
        columns=max(example.token_count for example in examples),
        answers_per_row=max(len(candidate) for example in examples for candidate in example.candidates),
    )
