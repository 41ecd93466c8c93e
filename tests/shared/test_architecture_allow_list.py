"""Only allow-listed, plain configuration ever leaves a foreign config.json."""

from __future__ import annotations

import math

import pytest

from shared.architecture import FAMILIES, safe_config
from shared.errors import UnsupportedModel

LLAMA = {"model_type": "llama", "hidden_size": 64, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}


def test_unknown_keys_are_dropped_and_the_class_is_ours():
    hostile = LLAMA | {"auto_map": {"AutoConfig": "evil.py"}, "_name_or_path": "/etc", "architectures": ["Evil"]}
    assert safe_config(hostile) == LLAMA | {"architectures": ["LlamaForCausalLM"]}


def test_reducing_twice_changes_nothing():
    assert safe_config(safe_config(LLAMA)) == safe_config(LLAMA)


@pytest.mark.parametrize("model_type", ["mixtral", "mamba", "bert"])
def test_a_family_that_is_not_tested_is_refused_by_name_with_the_way_around_it(model_type):
    with pytest.raises(UnsupportedModel, match=f"model_type '{model_type}'") as caught:
        safe_config({"model_type": model_type})
    assert "gemma2, gemma3_text, gpt2, gpt_neox, granite, llama" in caught.value.needed
    assert "--allow-untested" in caught.value.next_step


@pytest.mark.parametrize("model_type", [None, 3, "llama/../x", ""])
@pytest.mark.parametrize("allow_untested", [True, False])
def test_what_is_no_model_type_is_refused_even_where_untested_families_are_allowed(model_type, allow_untested):
    with pytest.raises(UnsupportedModel, match="model_type") as caught:
        safe_config({"model_type": model_type}, allow_untested=allow_untested)
    assert "--allow-untested" not in caught.value.next_step


def test_a_missing_model_type_is_called_missing():
    with pytest.raises(UnsupportedModel, match=r"no model_type in config\.json"):
        safe_config({"architectures": ["LlamaForCausalLM"]})


def test_an_untested_family_keeps_what_is_plain_and_nothing_that_chooses_code():
    hostile = {
        "model_type": "mixtral", "hidden_size": 64, "auto_map": {"AutoConfig": "evil.py"}, "_name_or_path": "/etc",
        "attn_implementation": "evil/kernel", "_attn_implementation": "evil/kernel", "trust_remote_code": True,
        "experts_implementation": "evil", "architectures": ["MixtralForCausalLM"], "dtype": "float64",
    }  # fmt: skip
    kept = safe_config(hostile, allow_untested=True)
    assert kept == {"model_type": "mixtral", "hidden_size": 64}
    assert safe_config(kept, allow_untested=True) == kept


@pytest.mark.parametrize("allow_untested", [True, False])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["LlamaForSequenceClassification"]}, "architectures names LlamaForSequenceClassification"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder is True"),
        ({"model_type": "llava", "text_config": {"model_type": "llama"}}, "text_config inside a model of type 'llava'"),
    ],
)
def test_what_is_no_causal_language_model_of_text_is_refused_by_what_it_is(changes, message, allow_untested):
    with pytest.raises(UnsupportedModel, match=message):
        safe_config(LLAMA | changes, allow_untested=allow_untested)


def test_already_quantised_weights_are_refused():
    with pytest.raises(UnsupportedModel, match="already quantised"):
        safe_config(LLAMA | {"quantization_config": {"bits": 4}})


@pytest.mark.parametrize(
    "value",
    ["x" * 65, [[[1]]], {"a": {"b": {"c": 1}}}, object(), list(range(1025)), {1: 2}, math.nan, math.inf, 10**400],
)
def test_values_that_are_not_plain_are_refused(value):
    with pytest.raises(UnsupportedModel, match="rope_scaling"):
        safe_config(LLAMA | {"rope_scaling": value})


def test_every_family_keeps_what_its_model_class_needs():
    for family in FAMILIES.values():
        usual = {"hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"}
        named = {family.dimension_keys.get(name, name) for name in usual}
        assert {"model_type", "vocab_size"} | named <= family.config_keys
