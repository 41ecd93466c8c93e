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


@pytest.mark.parametrize("model_type", ["gpt2", None, 3, "llama/../x"])
def test_a_family_that_is_not_served_is_refused_by_name(model_type):
    with pytest.raises(UnsupportedModel, match="one of llama, mistral, opt, qwen2, qwen3"):
        safe_config({"model_type": model_type})


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
        assert {"model_type", "vocab_size", "hidden_size", "num_hidden_layers"} <= family.config_keys
