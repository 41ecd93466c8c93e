"""Configurations whose numbers contradict each other or the weights: refused before a network is built."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloud_service.pipeline.model.config_bounds import check_config
from cloud_service.pipeline.model.load_model import read_outline
from cloud_service.pipeline.planning.model_shape import read_config_shape, read_model_shape
from shared.errors import UnsupportedModel
from shared.model_families import ROPE_TYPES

MakeCheckpoint = Callable[..., Path]
LLAMA = {
    "model_type": "llama", "vocab_size": 260, "hidden_size": 32, "intermediate_size": 44, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 64,
}  # fmt: skip


def change(folder: Path, **numbers: Any) -> Path:
    config = json.loads((folder / "config.json").read_text()) | numbers
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.attack
@pytest.mark.parametrize("read", [read_outline, read_model_shape])
def test_more_layers_than_the_weights_hold_are_refused_in_milliseconds_naming_both(
    make_checkpoint: MakeCheckpoint, read: Callable[[Path], object]
) -> None:
    folder = change(make_checkpoint(), num_hidden_layers=100_000)
    start = time.perf_counter()
    with pytest.raises(UnsupportedModel, match="num_hidden_layers is 100000, and the weights hold 2 layers"):
        read(folder)
    assert time.perf_counter() - start < 1


@pytest.mark.attack
def test_without_weights_more_layers_than_any_model_has_are_refused(make_checkpoint: MakeCheckpoint) -> None:
    folder = change(make_checkpoint(), num_hidden_layers=100_000)
    with pytest.raises(UnsupportedModel, match="num_hidden_layers is 100000\nNeeded: at most 1024"):
        read_config_shape(folder)


@pytest.mark.attack
@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"num_attention_heads": 0}, "num_attention_heads is 0\nNeeded: a positive whole number"),
        ({"num_attention_heads": -4}, "num_attention_heads is -4"),
        ({"num_attention_heads": 4.0}, r"num_attention_heads is 4\.0"),
        ({"num_attention_heads": True}, "num_attention_heads is True"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"hidden_size": None}, "hidden_size is None"),
        ({"hidden_size": 1 << 40}, "hidden_size is 1099511627776\nNeeded: at most"),
        ({"intermediate_size": "44"}, "intermediate_size is '44'"),
        ({"vocab_size": 10**300}, "vocab_size is 1000"),
        ({"max_position_embeddings": 1}, "max_position_embeddings is 1\nNeeded: at least 8"),
        ({"max_position_embeddings": 1 << 60}, "max_position_embeddings is 1152921504606846976"),
        ({"num_attention_heads": 5}, "5 num_attention_heads do not divide hidden_size 32"),
        ({"num_attention_heads": 32}, "heads of width 1\nNeeded: an even width"),
        ({"head_dim": 0}, "head_dim is 0"),
        ({"head_dim": 7}, "heads of width 7"),
        ({"num_key_value_heads": 3}, "3 num_key_value_heads do not divide 4 num_attention_heads"),
        ({"num_key_value_heads": 0}, "num_key_value_heads is 0"),
        ({"num_key_value_heads": 8}, "8 num_key_value_heads do not divide 4"),
    ],
)
def test_a_number_that_cannot_be_true_is_refused(numbers: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        check_config(LLAMA | numbers)


@pytest.mark.parametrize(
    "numbers",
    [
        {},
        {"head_dim": 24, "num_attention_heads": 5, "num_key_value_heads": 1},
        {"num_hidden_layers": 126, "hidden_size": 16384, "num_attention_heads": 128, "num_key_value_heads": 8,
         "intermediate_size": 53248, "vocab_size": 128256, "max_position_embeddings": 131072},
    ],
)  # fmt: skip
def test_numbers_of_real_models_are_allowed(numbers: dict[str, Any]) -> None:
    check_config(LLAMA | numbers)


def test_layers_are_counted_with_and_without_the_prefix_of_the_base_model() -> None:
    for prefix in ("model.", ""):
        check_config(LLAMA, [f"{prefix}layers.{index}.mlp.up_proj.weight" for index in (0, 1)])
        with pytest.raises(UnsupportedModel, match="the weights hold 1 layers"):
            check_config(LLAMA, [f"{prefix}layers.0.mlp.up_proj.weight", f"{prefix}layers.{'9' * 5000}.weight"])


@pytest.mark.parametrize(
    ("family", "key", "stated", "message"),
    [
        ("llama", "rope_scaling", {"type": "su", "factor": 2.0}, "has the type 'su'\nNeeded: one of default, d"),
        ("olmo2", "rope_parameters", {"rope_type": "by-hand"}, "rope_parameters has the type 'by-hand'\n"),
        ("llama", "rope_scaling", {"rope_type": ["linear"]}, "rope_scaling has the type"),
        ("phi3", "rope_scaling", {"type": "linear", "factor": 2.0}, "'linear'\nNeeded: one of default, longrope, su"),
        ("llama", "rope_scaling", {"type": "linear"}, "rope_scaling of type linear has no factor"),
        ("olmo2", "rope_scaling", {"rope_type": "llama3", "factor": 8.0}, "of type llama3 has no low_freq_factor"),
        (
            "gemma3_text", "rope_parameters", {"full_attention": {"rope_type": "odd"}},
            "rope_parameters.full_attention has the type 'odd'",
        ),
    ],
)  # fmt: skip
def test_frequencies_that_are_scaled_in_an_unknown_way_are_refused_by_key_and_type(
    family: str, key: str, stated: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        check_config(LLAMA | {"model_type": family, key: stated})


@pytest.mark.parametrize(
    "stated",
    [
        {"type": "linear", "factor": 4.0},
        {"rope_type": "dynamic", "factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        {"rope_type": "default"},
        None,
    ],
)
def test_frequencies_that_transformers_can_scale_are_allowed(stated: dict[str, Any] | None) -> None:
    check_config(LLAMA | {"rope_scaling": stated})


def test_the_known_ways_are_those_of_transformers() -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    assert {*ROPE_INIT_FUNCTIONS, "default"} >= ROPE_TYPES


@pytest.mark.attack
@pytest.mark.parametrize(
    "settings",
    [{"rope_scaling": {"rope_type": "linear", "factor": []}}, {"hidden_act": "exec"}],
)
def test_what_transformers_cannot_build_is_a_typed_refusal(
    make_checkpoint: MakeCheckpoint, settings: dict[str, Any]
) -> None:
    with pytest.raises(UnsupportedModel, match=r"config\.json does not make a LlamaForCausalLM"):
        read_outline(change(make_checkpoint(), **settings))
