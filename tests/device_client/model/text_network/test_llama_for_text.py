"""The plain network computes what transformers' network of the same weights computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from random_bundle import ARCHITECTURES
from torch import Tensor

from device_client.model.text_network.llama import LlamaForText
from device_client.model.text_network.shape import shape_of
from shared.architecture import family_of, safe_config
from shared.model.network import network_without_weights

VOCABULARY = 64
PROMPT = [7, 1, 20, 31, 31, 5, 60, 12, 9, 9]  # longer than the tiny mistral's window of 6
FOLLOWING = [4, 50, 4, 17]
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
CASES = {
    "llama": ("llama", {}),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama with linear scaling": (
        "llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    ),
    "llama with llama3 scaling": ("llama", {"rope_parameters": LLAMA3}),
    "mistral with a window": ("mistral", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"attention_bias": True}),
}  # fmt: skip


def networks(model_type: str, changes: dict[str, Any]) -> tuple[LlamaForText, Any]:
    """Both networks, with the same random weights."""
    fields = safe_config(ARCHITECTURES[model_type] | {"model_type": model_type, "vocab_size": VOCABULARY} | changes)
    theirs: Any = network_without_weights(family_of(fields), fields)
    generator = torch.Generator().manual_seed(3)
    weights = {
        name: torch.randn(parameter.shape, generator=generator) * 0.3 for name, parameter in theirs.named_parameters()
    }
    shape = shape_of(fields)
    assert shape is not None
    ours = LlamaForText(shape)
    for network in (ours, theirs):
        network.load_state_dict(weights, strict=False, assign=True)
        network.tie_weights() if network is theirs else None
    if shape.is_tied:
        ours.lm_head.weight = ours.model.embed_tokens.weight
    assert {name for name, _ in ours.named_parameters()} == set(weights)
    return ours.eval(), theirs.eval()


@torch.no_grad()
def expected_logits(theirs: Any, ids: list[int]) -> Tensor:
    logits: Tensor = theirs(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    return logits


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_a_prompt_and_what_follows_have_the_logits_of_transformers(name: str) -> None:
    ours, theirs = networks(*CASES[name])
    text = ours.model.empty_cache()

    at_once = ours.lm_head(ours.model(torch.tensor([PROMPT]), text).last_hidden_state[0])
    following = [ours.lm_head(ours.model(torch.tensor([[token]]), text).last_hidden_state[0, 0]) for token in FOLLOWING]

    expected = expected_logits(theirs, PROMPT + FOLLOWING)
    assert_close(at_once, expected[: len(PROMPT)])
    assert_close(torch.stack(following), expected[len(PROMPT) :])


@pytest.mark.parametrize("name", ["llama", "mistral with a window"])
@torch.no_grad()
def test_texts_side_by_side_have_the_logits_of_each_alone(name: str) -> None:
    ours, theirs = networks(*CASES[name])
    first, second = ours.model.empty_cache(), ours.model.empty_cache()

    ours.model.read([first], [PROMPT[:7]])
    states = ours.model.read([first, second], [PROMPT[7:], [3, 4]])
    later = ours.model.read([second, first], [[8], [50]])

    alone, other = expected_logits(theirs, [*PROMPT, 50]), expected_logits(theirs, [3, 4, 8])
    assert_close(ours.lm_head(states), torch.cat([alone[7:-1], other[:2]]))
    assert_close(ours.lm_head(later), torch.stack([other[2], alone[-1]]))


@torch.no_grad()
def test_a_text_that_is_cut_continues_from_there_and_its_copy_is_left_alone() -> None:
    ours, theirs = networks("llama", {})
    text = ours.model.empty_cache()
    ours.model.read([text], [PROMPT])
    other = text.copy()

    text.cut(4)
    states = ours.model.read([text, other], [[9], [9]])

    assert (text.tokens, other.tokens) == (5, len(PROMPT) + 1)
    expected = torch.stack([expected_logits(theirs, [*ids, 9])[-1] for ids in (PROMPT[:4], PROMPT)])
    assert_close(ours.lm_head(states), expected)


@torch.no_grad()
def test_a_text_of_many_tokens_outgrows_its_buffers() -> None:
    ours, theirs = networks("llama", {"max_position_embeddings": 256})
    text, ids = ours.model.empty_cache(), [token % VOCABULARY for token in range(0, 7 * 150, 7)]

    ours.model.read([text], [ids[:20]])
    states = [ours.model.read([text], [[token]])[0] for token in ids[20:]]

    assert_close(ours.lm_head(torch.stack(states)), expected_logits(theirs, ids)[20:])


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "gemma2"},
        {"hidden_act": "gelu"},
        {"rms_norm_eps": None},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
        {"rope_parameters": {"rope_type": "default"}},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"model_type": "mistral"},  # transformers takes a window of 4,096 where none is stated
        {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 6},
        {"model_type": "qwen3", "layer_types": ["full_attention", "sliding_attention"]},
    ],
)
def test_what_is_not_known_here_has_no_shape(changes: dict[str, Any]) -> None:
    plain = ARCHITECTURES["llama"] | {"model_type": "llama", "vocab_size": VOCABULARY}
    assert shape_of(plain) is not None
    assert shape_of(plain | changes) is None


def test_old_configurations_state_the_rotary_base_alone() -> None:
    fields = {key: value for key, value in ARCHITECTURES["llama"].items() if key != "rope_parameters"}
    shape = shape_of(fields | {"model_type": "llama", "vocab_size": VOCABULARY, "rope_theta": 500000.0})

    assert shape is not None
    assert shape.rope_parameters == {"rope_type": "default", "rope_theta": 500000.0}


def test_the_networks_of_transformers_have_no_other_defaults() -> None:
    """What ``shape_of`` fills in where a key is absent is what transformers' configuration says."""
    for model_type in ("llama", "qwen2", "qwen3"):
        fields = {"model_type": model_type, "hidden_size": 256, "num_attention_heads": 4, "num_hidden_layers": 2}
        config = transformers.AutoConfig.for_model(**fields)
        stated = {"intermediate_size": 44, "vocab_size": VOCABULARY, "max_position_embeddings": 64}
        shape = shape_of(fields | stated | {"rms_norm_eps": 1e-6, "rope_theta": 10000.0})
        assert shape is not None
        assert (shape.is_tied, config.hidden_act) == (config.tie_word_embeddings, "silu")
        key_heads = config.num_key_value_heads
        assert shape.dimensions.key_heads == key_heads
        assert shape.dimensions.head_width == (getattr(config, "head_dim", None) or 64)
