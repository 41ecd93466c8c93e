"""The predicted bytes against the loaded module, and the choice of the micro-batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_bundle import TinyBundle
from transformers import DynamicCache

from device_client.model.backends.choose import BackendName, BackendOptions
from device_client.model.backends.planned_bytes import planned_backend
from device_client.model.linear import QuantizedSparseLinear
from device_client.model.loader import load_model
from device_client.model.sparse_model import SparseModel
from device_client.planning.memory_plan import (
    MemoryPlan,
    Workload,
    check_budget,
    choose_micro_batch,
    plan_generation,
    plan_memory,
    spare_bytes,
    weight_parts,
)
from device_client.planning.workload import GROWTH_TOKENS
from shared.bundle.config import BundleConfig
from shared.bundle.read import read_bundle
from shared.errors import ResourceError, UnsupportedModel

LLAMA_2_7B_BLOCK = {
    "model_type": "llama",
    "num_hidden_layers": 32,
    "max_position_embeddings": 4096,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "intermediate_size": 11008,
    "vocab_size": 32000,
}


def bytes_of(*tensors: torch.Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def held_by(model: SparseModel, points: int) -> dict[str, int]:
    """The bytes of the loaded model, counted tensor by tensor."""
    layers = [module for module in model.network.modules() if isinstance(module, QuantizedSparseLinear)]
    parts = [(name, tensor) for layer in layers for name, tensor in layer.packed.quantized.parts.items()]
    stored = bytes_of(*(tensor for _, tensor in parts))
    values = torch.empty(points, model.sensitive_count, dtype=model.compute_dtype)
    return {
        "codes": bytes_of(*(tensor for name, tensor in parts if name == "codes")),
        "codebooks and scales": bytes_of(*(tensor for name, tensor in parts if name != "codes")),
        "unquantised parameters": bytes_of(*model.network.parameters()),
        "sensitive indices and values": sum(layer.packed.kept_bytes for layer in layers)
        - stored
        + bytes_of(values, model.initial_theta().half()),
    }


WIDE = {"hidden_size": 128, "intermediate_size": 256}
"""Whole panels: on a CPU with a matrix unit, what bfloat16 keeps besides is counted too."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize(
    ("model_type", "form", "shape"),
    [("llama", "per_row", {}), ("opt", "uniform", {}), ("qwen3", "shared", {}), ("llama", "per_row", WIDE)],
    ids=["llama", "opt", "qwen3", "wide llama"],
)
def test_planned_weights_and_workspace_are_exactly_the_loaded_ones(
    case_of: Callable, kernels: Path, model_type: str, form: str, shape: dict[str, int], backend: BackendName,
    dtype: torch.dtype,
) -> None:  # fmt: skip
    bundle = case_of(model_type, form, **shape).bundle

    model = load_model(bundle, device="cpu", compute_dtype=dtype, backend=BackendOptions(backend, kernels))
    model.write_points([model.initial_theta()] * 3)

    plan = plan_memory(
        bundle.config, Workload(1, 1, points=3), device_type="cpu", value_bytes=dtype.itemsize, backend=backend
    )
    held = held_by(model, points=3)
    planned = planned_backend(backend, "cpu", dtype.itemsize)
    assert weight_parts(bundle.config, dtype.itemsize, planned, points=3) == held
    assert held.items() <= plan.parts.items()
    assert plan.parts["workspace"] == model.runtime.backend.workspace_bytes
    assert plan.backend == model.backend_name == backend


def test_parts_of_the_tiny_bundle_worked_by_hand(tiny_bundle: TinyBundle) -> None:
    config = read_bundle(tiny_bundle.layout, tiny_bundle.digest).config
    rows, columns = 3, 10

    workload = Workload(rows, columns, 2, points=4, queries=2)
    parts = plan_memory(config, workload, device_type="cpu", backend="reference").parts

    # A block: q, o (32, 32); k, v (16, 32); gate, up (44, 32); down (32, 44).
    weights = 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 44 * 32)
    table_rows = 2 * (2 * 32 + 2 * 16 + 2 * 44 + 32)
    assert parts["codes"] == weights // 2
    assert parts["codebooks and scales"] == table_rows * 16 * 2
    assert parts["unquantised parameters"] == (259 * 32 + 5 * 32) * 4
    assert parts["sensitive indices and values"] == 14 * 8 * (8 + 2 + 4 * 4) + (table_rows + 14) * 4
    assert parts["workspace"] == 44 * 32 * (4 + 8 + 1)
    # The run's θ, the bundle's and at the end the best, two z of this step and of the next.
    assert parts["theta and z"] == 14 * 8 * 4 * (3 + 2 + 2)
    assert parts["activations and logits"] == 4 * rows * columns * (4 * 32 + 4 * 32 + 2 * 16) * 4
    passing = parts["activations and logits"]
    assert parts["allocator slack"] == passing // 2 + passing // 3
    assert parts["packed operands"] == 44 * 32 * 4


def test_a_compiled_backend_keeps_one_buffer_and_narrow_indices(config: BundleConfig) -> None:
    native = plan_memory(config, Workload(1, 1), device_type="cpu").parts
    triton = plan_memory(config, Workload(1, 1), device_type="cuda").parts

    rows = 2 * (2 * 32 + 2 * 16 + 2 * 44 + 32) + 14  # where the values of each row begin, and where they end
    assert native["sensitive indices and values"] == 14 * 8 * (4 + 4 + 2 + 4) + rows * 4
    assert triton["sensitive indices and values"] == 14 * 8 * (4 + 2 + 2) + rows * 4
    assert (native["workspace"], triton["workspace"]) == (44 * 32 * 4, 44 * 32 * 2)


def test_on_cuda_perturbations_drawn_ahead_lie_on_the_host(config: BundleConfig) -> None:
    def vectors(device_type: str, **shape: int) -> int:
        parts = plan_memory(config, Workload(1, 1, **shape), device_type=device_type).parts
        return parts["theta and z"] // (14 * 8 * 4)

    assert (vectors("cpu"), vectors("cuda")) == (3 + 1 + 1, 3 + 1 + 1)
    assert (vectors("cpu", queries=3, points=6), vectors("cuda", queries=3, points=6)) == (3 + 3 + 3, 3 + 3 + 1)
    assert vectors("cpu", queries=0) == vectors("cuda", queries=0) == 1


@pytest.mark.parametrize(("backend", "device_type"), [("triton", "cpu"), ("native", "cuda"), ("abacus", "cpu")])
def test_a_backend_of_another_device_is_refused(config: BundleConfig, backend: str, device_type: str) -> None:
    with pytest.raises(ResourceError, match=rf"'{backend}' on {device_type}\n.*reference"):
        plan_memory(config, Workload(1, 1), device_type=device_type, backend=backend)


@given(rows=st.integers(1, 40), room=st.integers(0, 20_000_000))
def test_the_chosen_micro_batch_is_the_largest_that_fits(rows: int, room: int, config: BundleConfig) -> None:
    most = Workload(rows, 128)
    budget = plan_memory(config, Workload(1, 128), device_type="cpu").total_bytes + room

    plan = choose_micro_batch(config, most, budget_bytes=budget, device_type="cpu")

    fitting = [
        count
        for count in range(1, rows + 1)
        if plan_memory(config, Workload(count, 128), device_type="cpu").total_bytes <= budget
    ]
    assert plan.workload.rows == max(fitting)
    assert plan == plan_memory(config, plan.workload, device_type="cpu")


def test_a_micro_batch_may_fill_the_budget_exactly(config: BundleConfig) -> None:
    budget = plan_memory(config, Workload(5, 128), device_type="cpu").total_bytes

    plan = choose_micro_batch(config, Workload(16, 128), budget_bytes=budget, device_type="cpu")

    assert plan.workload.rows == 5


def test_a_budget_below_one_row_names_what_is_needed(config: BundleConfig) -> None:
    needed = plan_memory(config, Workload(1, 128), device_type="cpu").total_bytes

    with pytest.raises(ResourceError, match=r"at least \d+\.\d MiB for 1 × 128 tokens, most of it libraries"):
        choose_micro_batch(config, Workload(16, 128), budget_bytes=needed - 1, device_type="cpu")
    choose_micro_batch(config, Workload(16, 128), budget_bytes=needed, device_type="cpu")


def test_a_plan_that_fits_exactly_is_accepted() -> None:
    plan = MemoryPlan(Workload(1, 1), {"codes": 10, "logits": 5})

    check_budget(plan, 15)
    with pytest.raises(ResourceError, match="at least 15 B") as caught:
        check_budget(plan, 14)
    assert caught.value.next_step == "--memory-budget 15B, or shorter sequences"


def test_a_micro_batch_that_does_not_fit_may_be_made_smaller() -> None:
    with pytest.raises(ResourceError, match="fewer sequences at once"):
        check_budget(MemoryPlan(Workload(2, 1), {"codes": 10}), 9)


def test_a_twentieth_of_the_budget_is_never_spare() -> None:
    plan = MemoryPlan(Workload(1, 1), {"codes": 10, "logits": 5})

    assert [spare_bytes(plan, budget) for budget in (40, 20, 16, 15, 10)] == [23, 4, 0, 0, 0]


@pytest.mark.parametrize("numbers", [(0, 1), (1, 0), (1, 1, 0), (1, 1, 1, -1), (1, 1, 1, 0, 0), (1, 1, 1, 0, 1, -1)])
def test_an_empty_workload_is_refused(numbers: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"at least 1|negative"):
        Workload(*numbers)


def test_generation_counts_the_keys_and_values_of_every_token(config: BundleConfig) -> None:
    grouped = {**LLAMA_2_7B_BLOCK, "num_key_value_heads": 8, "num_hidden_layers": 32}
    large = config.model_copy(update={"architecture": grouped})

    parts = plan_memory(large, Workload(1, 2048, cached_columns=2048), device_type="cuda").parts

    # 32 blocks and one copy · keys and values · 8 heads of 128 · 2048 tokens · 2 bytes.
    assert parts["key-value cache"] == 33 * 2 * 8 * 128 * (2048 + GROWTH_TOKENS) * 2
    assert "key-value cache" not in plan_memory(large, Workload(1, 2048), device_type="cuda").parts


def test_the_planned_cache_is_what_generating_a_text_keeps(case_of: Callable) -> None:
    model = load_model(case_of().bundle, device="cpu")
    cache = DynamicCache(config=model.network.config)

    with torch.no_grad():
        model.network.get_decoder()(input_ids=torch.arange(20)[None], past_key_values=cache, use_cache=True)

    kept = sum(bytes_of(layer.keys, layer.values) for layer in cache.layers)
    blocks = len(cache.layers)
    planned = plan_generation(model.config, "cpu").parts["key-value cache"]
    longest = model.config.tokenizer.context_length + GROWTH_TOKENS
    assert planned == kept // 20 * longest // blocks * (blocks + 1)


def test_activations_of_a_7b_model_come_to_the_published_order(config: BundleConfig) -> None:
    large = config.model_copy(update={"architecture": LLAMA_2_7B_BLOCK})

    parts = plan_memory(large, Workload(16, 512), device_type="cuda").parts

    # design/performance.md computes 0.758 GiB from the same shapes.
    assert parts["activations and logits"] == pytest.approx(0.758 * 2**30, rel=0.01)


@pytest.mark.parametrize("changes", [{"hidden_size": None}, {"num_attention_heads": 0}, {"vocab_size": "many"}])
def test_an_architecture_without_dimensions_is_refused(config: BundleConfig, changes: dict[str, Any]) -> None:
    changed = config.model_copy(update={"architecture": config.architecture | changes})
    with pytest.raises(UnsupportedModel, match=next(iter(changes))):
        plan_memory(changed, Workload(1, 1), device_type="cpu")


@pytest.fixture(scope="session")
def config(tiny_bundle: TinyBundle) -> BundleConfig:
    return read_bundle(tiny_bundle.layout, tiny_bundle.digest).config
