"""Predict the peak bytes of a forward pass from shapes alone, and choose the micro-batch that fits a budget.

    peak = weights + workspace + θ vectors + activations of the hungriest moment of one block + logits + framework
         + key-value cache, where a text is generated

    activations = tokens · bytes · (4H + max( 4Q + 2K,           attention: q k v, their rotated and repeated copies
                                              3M,                gated MLP: activation, up, product (else 2M)
                                              3H·4/bytes ))      norms, which compute in float32

    key-value cache = rows · cached columns · bytes · 2K · (blocks + 1)     one block's is copied as it grows

4H: the embeddings, the block's input, the residual and the normed input are all alive inside a block. A CPU's malloc
keeps about half of that again in freed pieces it cannot give back; ``tests/benchmarks/bench_device_model.py`` measures.

Symbols: H hidden · Q, K width of queries and keys · M width of the MLP · tokens = rows · columns. Both signs of a step
run one after the other, so they share these bytes. Costs nothing and imports neither torch nor transformers.
Knows nothing about files: only what the bundle's configuration says.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any

from device_client.model.backends.reference_tiles import workspace_bytes
from shared.bundle.manifest import BundleConfig
from shared.byte_sizes import format_bytes
from shared.errors import ResourceError, UnsupportedModel

FRAMEWORK_BYTES = {"cpu": 400 << 20, "cuda": 512 << 20}
"""CPU: the process after importing torch, transformers and tokenizers. CUDA: context and cuBLAS workspace."""

VALUE_BYTES = {"cpu": 4, "cuda": 2}
"""Bytes of one value in the default compute dtype: float32 on a CPU, float16 on CUDA."""

_ALLOCATOR_SLACK = {"cpu": 0.5, "cuda": 0.0}
"""Share of the activations that the allocator holds besides."""

_INDEX_BYTES = 8
_THETA_VECTORS = 4
"""θ, z, θ ± ε·z and the z drawn ahead, float32 each."""


@dataclass(frozen=True, slots=True)
class Workload:
    """The shape of one forward pass.

    Attributes:
        rows: Sequences side by side, the micro-batch.
        columns: Tokens of the longest sequence.
        answers_per_row: Positions of each row whose logits are wanted.
        cached_columns: Tokens of each row whose keys and values are kept in every block; 0 but for generation.
    """

    rows: int
    columns: int
    answers_per_row: int = 1
    cached_columns: int = 0

    def __post_init__(self) -> None:
        if min(self.rows, self.columns, self.answers_per_row) < 1:
            raise ValueError(f"{self}: every number must be at least 1")
        if self.cached_columns < 0:
            raise ValueError(f"{self}: cached_columns must not be negative")


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Predicted bytes by part.

    Attributes:
        workload: What was predicted for.
        parts: Name of the part → bytes.
    """

    workload: Workload
    parts: dict[str, int]

    @property
    def total_bytes(self) -> int:
        """Bytes of all parts."""
        return sum(self.parts.values())


def spare_bytes(plan: MemoryPlan, budget_bytes: int) -> int:
    """Return what a budget leaves beside a plan, for example for decoded weights; never below 0."""
    return max(0, budget_bytes - plan.total_bytes)


def weight_parts(config: BundleConfig, value_bytes: int) -> dict[str, int]:
    """Return the bytes that stay for as long as the model is loaded, by part.

    Args:
        config: The bundle's configuration.
        value_bytes: Bytes of one value in the compute dtype.
    """
    stored = [(part, prod(shape)) for entry in config.tensors for part, (_, shape) in entry.part_shapes.items()]
    return {
        "codes": sum(count for part, count in stored if part == "codes"),
        "codebooks and scales": sum(count * 2 for part, count in stored if part != "codes"),
        "unquantised parameters": sum(prod(entry.shape) for entry in config.dense_parameters) * value_bytes,
        "sensitive indices and values": config.sensitive_count * (_INDEX_BYTES + value_bytes + 2),
    }


def plan_memory(
    config: BundleConfig, workload: Workload, *, device_type: str, value_bytes: int | None = None
) -> MemoryPlan:
    """Return the predicted bytes of a tuning step, or of generating a text where the workload caches columns.

    Args:
        config: The bundle's configuration.
        workload: The shape of one forward pass.
        device_type: ``cpu`` or ``cuda``.
        value_bytes: Bytes of one value; None takes the device's default compute dtype.
    """
    bytes_each = value_bytes or VALUE_BYTES[device_type]
    parts = weight_parts(config, bytes_each)
    parts["workspace"] = workspace_bytes([entry.shape for entry in config.tensors], device_type, bytes_each)
    parts["theta and z"] = config.sensitive_count * 4 * _THETA_VECTORS
    parts["activations"] = _activation_bytes(config.architecture, workload, bytes_each)
    parts["allocator slack"] = int(parts["activations"] * _ALLOCATOR_SLACK[device_type])
    parts["logits"] = _logit_bytes(config.architecture, workload, bytes_each)
    if workload.cached_columns:
        parts["key-value cache"] = _cache_bytes(config.architecture, workload, bytes_each)
    parts["framework"] = FRAMEWORK_BYTES[device_type]
    return MemoryPlan(workload, parts)


def choose_micro_batch(
    config: BundleConfig, most: Workload, *, budget_bytes: int, device_type: str, value_bytes: int | None = None
) -> MemoryPlan:
    """Return the plan of the largest micro-batch, up to ``most.rows``, that fits the budget.

    Raises:
        ResourceError: Not even one row fits.
    """

    def plan(rows: int) -> MemoryPlan:
        return plan_memory(config, replace(most, rows=rows), device_type=device_type, value_bytes=value_bytes)

    check_budget(plan(1), budget_bytes)
    fitting, too_many = 1, most.rows + 1
    while too_many - fitting > 1:
        middle = (fitting + too_many) // 2
        fitting, too_many = (middle, too_many) if plan(middle).total_bytes <= budget_bytes else (fitting, middle)
    return plan(fitting)


def check_budget(plan: MemoryPlan, budget_bytes: int) -> None:
    """Refuse a plan that does not fit.

    Raises:
        ResourceError: It needs more than ``budget_bytes``; the message names what is needed at least.
    """
    if plan.total_bytes > budget_bytes:
        largest = max(plan.parts, key=lambda part: plan.parts[part])
        shape = f"{plan.workload.rows} × {plan.workload.columns} tokens"
        raise ResourceError(
            f"a memory budget of {format_bytes(budget_bytes)}",
            needed=f"at least {format_bytes(plan.total_bytes)} for {shape}, "
            f"most of it {largest} ({format_bytes(plan.parts[largest])})",
            next_step="raise --memory-budget, or shorten the sequences; see: zo-device plan",
        )


def _activation_bytes(architecture: dict[str, Any], workload: Workload, value_bytes: int) -> int:
    hidden = _dimension(architecture, "hidden_size")
    queries, keys = _attention_widths(architecture)
    gated, plain = (_dimension(architecture, key, 0) for key in ("intermediate_size", "ffn_dim"))
    attention = (4 * queries + 2 * keys) * value_bytes
    mlp = (3 * gated + 2 * plain) * value_bytes
    norm = 3 * hidden * 4
    return workload.rows * workload.columns * (4 * hidden * value_bytes + max(attention, mlp, norm))


def _cache_bytes(architecture: dict[str, Any], workload: Workload, value_bytes: int) -> int:
    _, keys = _attention_widths(architecture)
    copies = _dimension(architecture, "num_hidden_layers") + 1
    return workload.rows * workload.cached_columns * 2 * keys * copies * value_bytes


def _attention_widths(architecture: dict[str, Any]) -> tuple[int, int]:
    """Return the width of all queries, and of all keys, of one token."""
    hidden, heads = _dimension(architecture, "hidden_size"), _dimension(architecture, "num_attention_heads")
    head_width = _dimension(architecture, "head_dim", hidden // heads)
    return heads * head_width, _dimension(architecture, "num_key_value_heads", heads) * head_width


def _dimension(architecture: dict[str, Any], key: str, default: int | None = None) -> int:
    value = default if architecture.get(key) is None else architecture[key]
    if type(value) is not int or value < (1 if default is None else 0):
        raise UnsupportedModel(f"{key} is {value!r} in the bundle's architecture", needed="a positive whole number")
    return value


def _logit_bytes(architecture: dict[str, Any], workload: Workload, value_bytes: int) -> int:
    """Logits in the compute dtype, in float32, and their log-softmax."""
    copies = 4 + 4 + (value_bytes if value_bytes != 4 else 0)
    return workload.rows * workload.answers_per_row * _dimension(architecture, "vocab_size") * copies
