"""What the loader refuses, each by its typed error, before memory is spent."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from device_client.model.linear import compute_dtype_of
from device_client.model.loader import build_skeleton, load_model, resolve_device
from shared.bundle.read import Bundle
from shared.errors import ResourceError, TensorMismatch, UnsupportedModel


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


def test_compute_is_half_precision_on_cuda_and_single_on_a_cpu() -> None:
    assert compute_dtype_of(torch.device("cuda")) == torch.float16
    assert compute_dtype_of(torch.device("cpu")) == torch.float32


def test_an_explicit_compute_dtype_is_respected(case_of: Callable) -> None:
    model = load_model(case_of().bundle, device="cpu", compute_dtype=torch.bfloat16)

    assert model.compute_dtype == torch.bfloat16
    assert {parameter.dtype for parameter in model.network.parameters()} == {torch.bfloat16}
