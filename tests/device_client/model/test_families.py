"""Every tested family on the device: the same logits and the same text as transformers' own network of its weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from points_alone import assert_points_keep_their_bits, offset_points
from random_bundle import Case, make_case
from tiny_checkpoint import CONFIGS
from token_rows import batch_of

from device_client.model.linear import QuantizedSparseLinear
from device_client.model.loader import load_model
from shared.architecture import FAMILIES

# One float32 forward of two tiny blocks: products are added up in another order than transformers adds them.
FLOAT32_FORWARD = {"rtol": 1e-5, "atol": 1e-5}

ALL = sorted(FAMILIES)
SWITCH = CONFIGS["phi3"]["original_max_position_embeddings"]
"""Above so many tokens Phi-3 takes other rotary frequencies, for every row of a batch."""


def random_rows(*lengths: int) -> list[list[int]]:
    generator = np.random.default_rng(5)
    return [generator.integers(4, 250, length).tolist() for length in lengths]


@pytest.mark.parametrize("model_type", ALL)
@pytest.mark.parametrize("lengths", [(12, 12), (SWITCH + 16,)], ids=str)
def test_logits_equal_those_of_transformers(case_of: Callable, model_type: str, lengths: tuple[int, ...]) -> None:
    case = case_of(model_type)
    batch = batch_of(random_rows(*lengths))
    with torch.no_grad():
        expected = case.reference(batch.input_ids).logits[batch.logit_rows, batch.logit_columns]

    logits = load_model(case.bundle, device="cpu").logits(batch)[0]

    torch.testing.assert_close(logits, expected, **FLOAT32_FORWARD)


@pytest.mark.parametrize("model_type", ALL)
def test_padded_rows_equal_those_of_transformers_with_a_mask(case_of: Callable, model_type: str) -> None:
    case = case_of(model_type)
    batch = batch_of(random_rows(3, 20, 7))
    with torch.no_grad():
        full = case.reference(batch.input_ids, attention_mask=batch.attention_mask).logits

    logits = load_model(case.bundle, device="cpu").logits(batch)[0]

    torch.testing.assert_close(logits, full[batch.logit_rows, batch.logit_columns], **FLOAT32_FORWARD)


@pytest.mark.parametrize("model_type", ALL)
@pytest.mark.parametrize("lengths", [(9, 4), (17, 17, 17), (50,) * 4], ids=str)
def test_points_side_by_side_give_the_bits_of_each_alone(
    case_of: Callable, model_type: str, lengths: tuple[int, ...]
) -> None:
    model = load_model(case_of(model_type).bundle, device="cpu")
    batch = batch_of(random_rows(*lengths))

    assert_points_keep_their_bits(model, batch, offset_points(model.initial_theta()))


@pytest.mark.parametrize("model_type", ALL)
@pytest.mark.parametrize("prompt_tokens", [5, SWITCH - 4], ids=str)
def test_generated_text_equals_that_of_transformers(case_of: Callable, model_type: str, prompt_tokens: int) -> None:
    case = case_of(model_type)
    prompt = random_rows(prompt_tokens)[0]
    with torch.no_grad():
        whole = case.reference.generate(
            torch.tensor([prompt]), max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0
        )

    text = list(load_model(case.bundle, device="cpu").generate(prompt, max_new_tokens=20))

    assert text == whole[0, prompt_tokens:].tolist()


def test_a_weight_that_transformers_keeps_transposed_is_kept_like_every_other(case_of: Callable) -> None:
    case = case_of("gpt2")
    entry = next(entry for entry in case.bundle.config.tensors if entry.name.endswith("h.1.attn.c_attn.weight"))
    assert entry.shape == (96, 32)
    layer = load_model(case.bundle, device="cpu").network.get_submodule(entry.name.removesuffix(".weight"))
    assert isinstance(layer, QuantizedSparseLinear)
    assert torch.equal(layer.effective_weight().T, case.reference.get_parameter(entry.name))


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("gpt_neox", {"use_parallel_residual": False}),
        ("gpt_neox", {"attention_bias": False}),
        ("stablelm", {"use_parallel_residual": True}),
        ("stablelm", {"qk_layernorm": True}),
        ("gpt2", {"n_inner": None, "scale_attn_by_inverse_layer_idx": True}),
        ("gemma2", {"num_key_value_heads": 1, "attn_logit_softcapping": None, "final_logit_softcapping": None}),
        ("gemma3_text", {"num_key_value_heads": 1, "layer_types": ["sliding_attention"] * 2}),
        ("olmo2", {"tie_word_embeddings": True, "attention_bias": True}),
        ("granite", {"mlp_bias": True, "attention_bias": True}),
        ("phi3", {"rope_scaling": None, "sliding_window": 7}),
        ("smollm3", {"use_sliding_window": True, "sliding_window": 6}),
        ("mistral", {"sliding_window": 6}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
        ("llama", {"hidden_size": 56, "intermediate_size": 101, "num_key_value_heads": 1, "num_hidden_layers": 1}),
        ("llama", {"hidden_size": 8, "intermediate_size": 9, "num_attention_heads": 1, "num_key_value_heads": 1}),
        ("llama", {"head_dim": 24, "intermediate_size": 130}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("llama", {"vocabulary": 640}),
        ("opt", {"word_embed_proj_dim": 16, "do_layer_norm_before": False}),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0,
                                       "original_max_position_embeddings": 16}}),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}}),
    ],
    ids=str,
)  # fmt: skip
def test_odd_shapes_windows_and_other_forms_of_a_family_compute_rightly(
    tmp_path: Path, model_type: str, changes: dict[str, Any]
) -> None:
    assert_equal_to_transformers(make_case(tmp_path, model_type, **changes), 20)


def assert_equal_to_transformers(case: Case, tokens: int) -> None:
    batch = batch_of(random_rows(tokens, tokens))
    with torch.no_grad():
        expected = case.reference(batch.input_ids).logits[batch.logit_rows, batch.logit_columns]
    torch.testing.assert_close(load_model(case.bundle, device="cpu").logits(batch)[0], expected, **FLOAT32_FORWARD)
