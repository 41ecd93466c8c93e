"""What the loader refuses, each by its typed error, before memory is spent."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from device_client.devices import default_dtype, resolve_device
from device_client.model.loader import build_skeleton, load_model
from device_client.model.memory_meter import MemoryMeter
from shared.bundle.read import Bundle
from shared.errors import BlobMissing, ResourceError, TensorMismatch, UnsupportedModel


def with_architecture(bundle: Bundle, **changes: Any) -> Bundle:
    architecture = bundle.config.architecture | changes
    return dataclasses.replace(bundle, config=bundle.config.model_copy(update={"architecture": architecture}))


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 64},
        {"intermediate_size": 45},
        {"num_key_value_heads": 4},
        {"vocab_size": 260},
        {"num_hidden_layers": 1},
        {"num_hidden_layers": 3},
        {"tie_word_embeddings": False},
        {"attention_bias": True},
    ],
)
def test_an_architecture_with_other_parameters_than_the_bundle_is_refused(
    case_of: Callable, changes: dict[str, Any]
) -> None:
    with pytest.raises(TensorMismatch):
        load_model(with_architecture(case_of().bundle, **changes), device="cpu")


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "mamba"},
        {"num_attention_heads": 0},
        {"num_attention_heads": 5},
        {"num_attention_heads": "four"},
        {"hidden_size": -32},
        {"hidden_act": "no such function"},
        {"rope_parameters": {"rope_type": "no such type", "rope_theta": 1.0}},
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": None},
        {"hidden_act": {"nested": {"deeper": {"deepest": 1}}}},
    ],
)
def test_an_architecture_that_makes_no_model_is_refused(case_of: Callable, changes: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModel):
        load_model(with_architecture(case_of().bundle, **changes), device="cpu")


def test_keys_outside_the_allow_list_never_reach_transformers(case_of: Callable) -> None:
    bundle = with_architecture(case_of().bundle, auto_map={"AutoModelForCausalLM": "evil.Model"}, evil_key=1)

    skeleton = build_skeleton(bundle.config)

    assert not hasattr(skeleton.config, "auto_map")
    assert not hasattr(skeleton.config, "evil_key")


def test_a_quantised_weight_must_belong_to_a_linear_layer(case_of: Callable) -> None:
    config = case_of().bundle.config
    embedding = next(entry for entry in config.dense_parameters if entry.name.endswith("embed_tokens.weight"))
    quantised = config.tensors[0].model_copy(update={"name": embedding.name, "shape": tuple(embedding.shape)})
    dense = [entry for entry in config.dense_parameters if entry is not embedding]
    changed = config.model_copy(update={"tensors": [*config.tensors, quantised], "dense_parameters": dense})

    with pytest.raises(UnsupportedModel, match="no linear layer"):
        build_skeleton(changed)


def test_the_skeleton_occupies_no_memory(case_of: Callable) -> None:
    skeleton = build_skeleton(case_of().bundle.config)
    assert all(parameter.is_meta for parameter in skeleton.parameters())


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(case_of: Callable) -> None:
    bundle = case_of("llama", vocabulary=258).bundle
    with pytest.raises(TensorMismatch, match=r"token 258\n.*below 258"):
        load_model(bundle, device="cpu")


def test_a_budget_below_the_weights_is_refused_before_any_file_is_opened(case_of: Callable) -> None:
    bundle = case_of().bundle
    without_files = dataclasses.replace(bundle, manifest=bundle.manifest.model_copy(update={"layers": []}))

    with pytest.raises(ResourceError, match="at least") as caught:
        load_model(without_files, device="cpu", memory_budget_bytes=1 << 20)

    assert caught.value.exit_code == 8


def test_a_budget_that_suffices_changes_nothing(case_of: Callable) -> None:
    assert load_model(case_of().bundle, device="cpu", memory_budget_bytes=1 << 30).sensitive_count == 84


@pytest.mark.parametrize("name", ["cuda:99", "mps", "no such device"])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(ResourceError, match=name):
        resolve_device(name)


class FakeCuda:
    """Two devices of 16 GiB, the second one current; torch's calls refuse a device without an index, so this does."""

    def __init__(self) -> None:
        self.shares: dict[int, float] = {}
        self.accumulates_in_float32 = False

    def device_count(self) -> int:
        return 2

    def current_index(self) -> int:
        return 1

    def total_bytes(self, device: torch.device) -> int:
        return 16 << 30

    def shares_main_memory(self, device: torch.device) -> bool:
        return device.index == 0

    def peak_reserved_bytes(self, device: torch.device) -> int:
        return 3 << 30

    def limit_allocations(self, device: torch.device, share: float) -> None:
        assert device.index is not None
        self.shares[device.index] = share

    def accumulate_in_float32(self) -> None:
        self.accumulates_in_float32 = True


@pytest.mark.parametrize(("name", "index"), [(None, 1), ("cuda", 1), ("cuda:0", 0), ("cuda:1", 1)])
def test_a_cuda_device_always_has_an_index(name: str | None, index: int) -> None:
    assert resolve_device(name, FakeCuda()) == torch.device("cuda", index)
    with pytest.raises(ResourceError, match="sees 2 CUDA devices"):
        resolve_device("cuda:2", FakeCuda())


def test_on_cuda_the_budget_caps_the_allocator_and_products_accumulate_in_float32(case_of: Callable) -> None:
    bundle, cuda = case_of().bundle, FakeCuda()
    without_files = dataclasses.replace(bundle, manifest=bundle.manifest.model_copy(update={"layers": []}))

    with pytest.raises(BlobMissing):  # no GPU here: the loader must not get as far as allocating on one
        load_model(without_files, memory_budget_bytes=8 << 30, cuda=cuda)

    # The context takes 0.5 of the 8 GiB: 7.5 of 16 are left to the allocator.
    assert cuda.shares == {1: 7.5 / 16}
    assert cuda.accumulates_in_float32


def test_on_a_cpu_cuda_is_left_alone(case_of: Callable) -> None:
    cuda = FakeCuda()

    load_model(case_of().bundle, device="cpu", memory_budget_bytes=1 << 30, cuda=cuda)

    assert (cuda.shares, cuda.accumulates_in_float32) == ({}, False)


def test_the_peak_on_cuda_counts_the_context_as_the_plan_does() -> None:
    meter = MemoryMeter(torch.device("cuda", 0), FakeCuda())

    assert meter.peak_bytes == (3 << 30) + (512 << 20)


def test_compute_is_half_precision_on_cuda_and_single_on_a_cpu() -> None:
    assert default_dtype(torch.device("cuda")) == torch.float16
    assert default_dtype(torch.device("cpu")) == torch.float32


def test_an_explicit_compute_dtype_is_respected(case_of: Callable) -> None:
    model = load_model(case_of().bundle, device="cpu", compute_dtype=torch.bfloat16)

    assert model.compute_dtype == torch.bfloat16
    assert {parameter.dtype for parameter in model.network.parameters()} == {torch.bfloat16}
