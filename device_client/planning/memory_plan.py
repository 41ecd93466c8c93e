"""Predict the peak bytes of a step, an evaluation or a text from shapes alone, and fit the micro-batch to a budget.

    peak = weights + workspace + θ vectors + hungriest moment of a pass + keys and values        counted
         + libraries + packed operands + allocator slack                                         measured once

    θ vectors = k · 4 · (3 + q + r)          three θ, z of q queries; on a CPU r = q next z, on CUDA r = 1, a θ ± ε·z

Where only upper blocks are tuned, k counts their values, and hidden states that enter them are held and kept; see
``model.upper_blocks``. Where something else than sensitive values is tuned, k counts that, each point holds it in the
compute dtype, and the bundle's own sensitive values stand at every point; see ``methods``.
Three θ: the run's, the bundle's, kept for the divergence watch, and at the end the best. Loading never needs more: see
``loader``.
``tests/benchmarks/memory_plan_error.py`` compares with what processes use. Imports neither torch nor transformers.
Symbols: k tuned values · q queries. Knows nothing about files.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from device_client.devices import DEFAULT_DTYPES, DTYPE_BYTES
from device_client.model.backends.planned_bytes import (
    PlannedBackend,
    decoded_shapes,
    likeliest_backend,
    planned_backend,
    row_start_bytes,
)
from device_client.planning.gradient_memory import THETA_VECTORS, differentiated_moment, kept_inputs_bytes
from device_client.planning.methods import MethodName, tuned_part
from device_client.planning.pass_memory import hungriest_moment, key_value_bytes
from device_client.planning.process_overhead import libraries_bytes, product_bytes, slack_bytes
from device_client.planning.tuned_blocks import TunedBlocks
from device_client.planning.workload import Workload
from shared.bundle.config import BundleConfig
from shared.byte_sizes import format_bytes, format_enough
from shared.errors import ResourceError
from shared.model_dimensions import dimensions_of

KEPT_STATES = "kept hidden states"
"""The part that what lies below the tuned blocks takes, where not all of them are tuned."""

_STORED_VALUE_BYTES = 2
_THETA_BYTES = 4


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Predicted bytes by part.

    Attributes:
        workload: What was predicted for.
        parts: Name of the part → bytes.
        backend: Whose buffers and indices are counted.
    """

    workload: Workload
    parts: dict[str, int]
    backend: str = "reference"

    @property
    def total_bytes(self) -> int:
        """Bytes of all parts."""
        return sum(self.parts.values())


def spare_bytes(plan: MemoryPlan, budget_bytes: int) -> int:
    """Return what a plan leaves of 19/20 of a budget, for example for decoded weights; never below 0.

    A twentieth stays free, because a prediction may be wrong by a few percent.
    """
    return max(0, budget_bytes * 19 // 20 - plan.total_bytes)


def weight_parts(
    config: BundleConfig,
    value_bytes: int,
    backend: PlannedBackend,
    *,
    points: int = 1,
    tuned: TunedBlocks | None = None,
) -> dict[str, int]:
    """Return the bytes that stay for as long as the model is loaded, by part.

    Args:
        config: The bundle's configuration.
        value_bytes: Bytes of one value in the compute dtype.
        backend: What will keep them.
        points: θ's side by side.
        tuned: Which blocks are tuned; None tunes all. Only their values are there once per point.
    """
    at_points = points * config.sensitive_count
    if tuned is not None and tuned.first:
        at_points = config.sensitive_count + points * tuned.value_count
    stored = [(part, prod(shape)) for entry in config.tensors for part, (_, shape) in entry.part_shapes.items()]
    positions = sum(backend.position_bytes(entry) for entry in config.block_tensors)
    positions += sum(row_start_bytes(entry) for entry in config.tensors)
    return {
        "codes": sum(count for part, count in stored if part == "codes"),
        "codebooks and scales": sum(count * _STORED_VALUE_BYTES for part, count in stored if part != "codes"),
        "unquantised parameters": sum(prod(entry.shape) for entry in config.dense_parameters) * value_bytes,
        "sensitive indices and values": positions
        + config.sensitive_count * _STORED_VALUE_BYTES
        + at_points * value_bytes,
    }


def plan_memory(
    config: BundleConfig,
    workload: Workload,
    *,
    device_type: str,
    value_bytes: int | None = None,
    backend: str = "auto",
) -> MemoryPlan:
    """Return the predicted bytes of a tuning step, or of generating a text where the workload caches columns.

    Args:
        config: The bundle's configuration.
        workload: The shape of one forward pass.
        device_type: ``cpu`` or ``cuda``.
        value_bytes: Bytes of one value; None takes the device's default compute dtype.
        backend: ``reference``, ``native``, ``triton``, or ``auto`` for the one that is probably chosen.

    Raises:
        ResourceError: There is no such backend on the device.
        UnsupportedModel: The architecture lacks a dimension.
    """
    bytes_each = value_bytes or DTYPE_BYTES[DEFAULT_DTYPES[device_type]]
    backend = likeliest_backend(backend, device_type)
    shapes = decoded_shapes(config, device_type)
    pieces = _hungriest_moment(config, workload, bytes_each)
    part = tuned_part(config, workload.method, workload.blocks)
    tuned = part.blocks
    planned = planned_backend(backend, device_type, bytes_each)
    parts = weight_parts(config, bytes_each, planned, points=workload.points, tuned=tuned)
    parts["workspace"] = planned.workspace_bytes(shapes)
    vectors = "theta and moments" if workload.is_differentiated else "theta and z"
    parts[vectors] = part.value_count * _THETA_BYTES * _theta_vectors(workload, device_type)
    if part.method.is_beside_weights:
        parts[vectors] += tuned.value_count * _THETA_BYTES
        parts["values of the method"] = workload.points * part.value_count * bytes_each
    parts["activations and logits"] = sum(pieces)
    if workload.is_differentiated:
        parts["inputs of blocks"] = kept_inputs_bytes(
            config.architecture, workload, bytes_each, tuned.count - tuned.first
        )
    if tuned.first:
        held_tokens = workload.entering_tokens + workload.kept_tokens
        parts[KEPT_STATES] = held_tokens * state_bytes(config, bytes_each)
    if workload.cached_columns:
        parts["key-value cache"] = key_value_bytes(config.architecture, workload, bytes_each)
    parts["packed operands"] = product_bytes(device_type, max(map(prod, shapes)) * bytes_each)
    parts["allocator slack"] = slack_bytes(device_type, pieces, is_differentiated=workload.is_differentiated)
    parts["libraries"] = libraries_bytes(device_type)
    return MemoryPlan(workload, parts, backend)


def state_bytes(config: BundleConfig, value_bytes: int) -> int:
    """Return the bytes of one token's hidden state."""
    return dimensions_of(config.architecture).hidden * value_bytes


def plan_generation(
    config: BundleConfig,
    device_type: str,
    value_bytes: int | None = None,
    backend: str = "auto",
    method: MethodName = "sparse",
) -> MemoryPlan:
    """Return the predicted bytes of a text that fills the context, its keys and values included."""
    context = config.tokenizer.context_length
    most = Workload(rows=1, columns=context, cached_columns=context, queries=0, method=method)
    return plan_memory(config, most, device_type=device_type, value_bytes=value_bytes, backend=backend)


def text_memory(
    config: BundleConfig, budget_bytes: int, device_type: str, value_bytes: int, backend: str, part_tokens: int
) -> tuple[int, int]:
    """Return what the keys and values of texts may take, and those of one token, in bytes.

    Args:
        config: The bundle's.
        budget_bytes: What the process may use.
        device_type: Where it computes.
        value_bytes: Of one number in the compute format.
        backend: What decodes the weights.
        part_tokens: New tokens of all texts in one pass, at most.
    """
    most = Workload(rows=1, columns=part_tokens, queries=0)
    plan = plan_memory(config, most, device_type=device_type, value_bytes=value_bytes, backend=backend)
    dimensions = dimensions_of(config.architecture)
    return max(0, budget_bytes - plan.total_bytes), 2 * dimensions.keys * dimensions.blocks * value_bytes


def choose_micro_batch(
    config: BundleConfig,
    most: Workload,
    *,
    budget_bytes: int,
    device_type: str,
    value_bytes: int | None = None,
    backend: str = "auto",
) -> MemoryPlan:
    """Return the plan of the largest micro-batch, up to ``most.rows``, that fits the budget.

    Raises:
        ResourceError: Not even one row fits, or there is no such backend on the device.
    """

    def plan(rows: int) -> MemoryPlan:
        return plan_memory(
            config, replace(most, rows=rows), device_type=device_type, value_bytes=value_bytes, backend=backend
        )

    fitting = next((rows for rows in range(most.rows, 0, -1) if plan(rows).total_bytes <= budget_bytes), None)
    if fitting is None:
        check_budget(plan(1), budget_bytes)
    return plan(fitting or 1)


def check_budget(plan: MemoryPlan, budget_bytes: int) -> None:
    """Refuse a plan that does not fit.

    Raises:
        ResourceError: It needs more than ``budget_bytes``; the message names the least budget that would do.
    """
    if plan.total_bytes > budget_bytes:
        largest = max(plan.parts, key=lambda part: plan.parts[part])
        shape = f"{plan.workload.rows} × {plan.workload.columns} tokens"
        enough = format_enough(plan.total_bytes)
        instead = "fewer sequences at once" if plan.workload.rows > 1 else "shorter sequences"
        raise ResourceError(
            f"a memory budget of {format_bytes(budget_bytes)}",
            needed=f"at least {enough} for {shape}, most of it {largest} ({format_bytes(plan.parts[largest])})",
            next_step=f"--memory-budget {enough.replace(' ', '')}, or {instead}",
        )


def _hungriest_moment(config: BundleConfig, workload: Workload, value_bytes: int) -> list[int]:
    if not workload.is_differentiated:
        return hungriest_moment(config.architecture, workload, value_bytes)
    most_places = max(entry.sensitive_count for entry in config.block_tensors)
    return differentiated_moment(config.architecture, workload, value_bytes, most_places)


def _theta_vectors(workload: Workload, device_type: str) -> int:
    """Return how many vectors of k float32 are alive in a pass."""
    if workload.is_differentiated:
        return THETA_VECTORS
    if workload.queries == 0:
        return 1
    return 3 + workload.queries + (workload.queries if device_type == "cpu" else 1)
