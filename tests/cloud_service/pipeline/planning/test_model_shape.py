"""How large a model is, from headers and from config.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tiny_checkpoint import CONFIGS, build_checkpoint

from cloud_service.pipeline.model.load_model import read_outline
from cloud_service.pipeline.planning.family_shapes import shapes_of_config
from cloud_service.pipeline.planning.model_shape import read_config_shape, read_model_shape, shape_of_tensors
from shared.errors import UnsupportedModel

LLAMA_2_7B = {
    "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "max_position_embeddings": 4096,
}  # fmt: skip


def test_llama_2_7b_has_the_published_number_of_parameters() -> None:
    shape = shape_of_tensors(LLAMA_2_7B, shapes_of_config(LLAMA_2_7B))
    assert shape.elements == 6_738_415_616
    assert shape.linear_elements == 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert shape.largest_linear == 4096 * 11008
    assert (shape.query_width, shape.key_width) == (4096, 4096)


def test_opt_1_3b_has_the_published_number_of_parameters() -> None:
    config = {
        "model_type": "opt", "vocab_size": 50272, "hidden_size": 2048, "ffn_dim": 8192, "num_hidden_layers": 24,
        "num_attention_heads": 32, "max_position_embeddings": 2048, "word_embed_proj_dim": 2048,
    }  # fmt: skip
    shape = shape_of_tensors(config, shapes_of_config(config))
    assert shape.elements == 1_315_758_080
    assert shape.is_tied


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_config_and_headers_agree_for_every_family(tmp_path: Path, family: str) -> None:
    folder = build_checkpoint(tmp_path / family, family)
    from_headers = read_model_shape(folder)
    (folder / "model.safetensors").rename(tmp_path / "elsewhere")
    assert read_model_shape(folder) == read_config_shape(folder)
    from_config = read_config_shape(folder)
    assert from_config.elements == from_headers.elements
    assert from_config.linear_elements == from_headers.linear_elements
    assert from_config.head_elements == from_headers.head_elements
    assert sorted(from_config.blocks[0].linears) == sorted(from_headers.blocks[0].linears)


def test_grouped_queries_make_keys_narrower_than_queries() -> None:
    config = LLAMA_2_7B | {"num_key_value_heads": 8}
    shape = shape_of_tensors(config, shapes_of_config(config))
    assert (shape.query_width, shape.key_width) == (4096, 1024)


def test_a_tied_head_counts_once() -> None:
    tied = LLAMA_2_7B | {"tie_word_embeddings": True}
    difference = 32000 * 4096
    assert shape_of_tensors(tied, shapes_of_config(tied)).elements == 6_738_415_616 - difference


def test_a_damaged_header_is_named(tmp_path: Path) -> None:
    folder = build_checkpoint(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00not json")
    with pytest.raises(UnsupportedModel, match=r"model\.safetensors") as caught:
        read_model_shape(folder)
    assert "undamaged" in str(caught.value)


@pytest.mark.parametrize("is_indexed", [False, True])
def test_files_that_are_not_loaded_are_not_counted(tmp_path: Path, is_indexed: bool) -> None:
    folder = build_checkpoint(tmp_path / "model")
    expected, outline = read_model_shape(folder), read_outline(folder)
    extra = {"model.adapter.weight": torch.ones(500, 500)}
    safetensors.torch.save_file(extra, folder / "consolidated.safetensors")
    if is_indexed:
        (folder / "model.safetensors").rename(folder / "part.safetensors")
        safetensors.torch.save_file(extra, folder / "another.safetensors")
        index = {"weight_map": dict.fromkeys(outline.shapes, "part.safetensors")}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert read_model_shape(folder) == expected
    assert read_outline(folder).shapes == outline.shapes


def test_a_shard_that_is_missing_is_named(tmp_path: Path) -> None:
    folder = build_checkpoint(tmp_path / "model")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "part-2.safetensors"}}')
    with pytest.raises(UnsupportedModel, match=r"part-2\.safetensors.*missing"):
        read_model_shape(folder)


def test_a_folder_without_a_configuration_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"config\.json"):
        read_model_shape(tmp_path)


def test_a_missing_block_is_named(tmp_path: Path) -> None:
    folder = build_checkpoint(tmp_path / "model")
    text = (folder / "config.json").read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 3')
    (folder / "config.json").write_text(text)
    with pytest.raises(UnsupportedModel, match="num_hidden_layers is 3, and the weights hold 2 layers"):
        read_model_shape(folder)
