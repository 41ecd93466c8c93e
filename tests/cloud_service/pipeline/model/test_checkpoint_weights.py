"""The weights of a folder, whatever wrapped the network that saved them, and only where they are one whole set."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from cloud_service.contained_folder import ContainedFolder
from cloud_service.pipeline.model.load_model import read_outline
from cloud_service.pipeline.model.weight_files import plain_name, weight_files
from cloud_service.pipeline.planning.model_shape import read_model_shape
from shared.errors import UnsupportedModel

MakeCheckpoint = Callable[..., Path]
Weights = dict[str, torch.Tensor]
INDEX = "model.safetensors.index.json"


def weights_of(folder: Path) -> Weights:
    return safetensors.torch.load_file(folder / "model.safetensors")  # type: ignore[no-any-return]


def rename(folder: Path, change: Callable[[str], str]) -> Weights:
    """Rename all tensors and return them by their names before."""
    weights = weights_of(folder)
    safetensors.torch.save_file(
        {change(name): tensor for name, tensor in weights.items()}, folder / "model.safetensors"
    )
    return weights


def refusal(folder: Path) -> str:
    with pytest.raises(UnsupportedModel) as caught:
        read_outline(folder)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("_orig_mod.model.norm.weight", "model.norm.weight"),
        ("module.model.norm.weight", "model.norm.weight"),
        ("module._orig_mod.module.model.norm.weight", "model.norm.weight"),
        ("model.layers.0._orig_mod.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("_fsdp_wrapped_module.model.layers.1._checkpoint_wrapped_module.fc1.bias", "model.layers.1.fc1.bias"),
        ("model.module.weight", "model.module.weight"),  # in the middle it may be the network's own
        ("not_orig_mod.weight", "not_orig_mod.weight"),
        ("model.norm.weight", "model.norm.weight"),
    ],
)
def test_what_wrappers_put_into_names_is_taken_off(name: str, plain: str) -> None:
    assert plain_name(name) == plain


@pytest.mark.parametrize(
    "change",
    [
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module.{name}",
        lambda name: name.replace("layers.1.", "layers.1._orig_mod."),
        lambda name: name.removeprefix("model."),
        lambda name: f"module.{name.removeprefix('model.')}",
    ],
    ids=["compiled", "ddp", "block_compiled", "no_prefix", "ddp_no_prefix"],
)
def test_weights_of_a_wrapped_network_are_read_and_planned_as_its_own(
    change: Callable[[str], str], make_checkpoint: MakeCheckpoint
) -> None:
    folder = make_checkpoint("mistral")
    planned = read_model_shape(folder)
    weights = rename(folder, lambda name: name if name.startswith("lm_head") else change(name))
    outline = read_outline(folder)
    assert set(outline.shapes) == set(weights)
    assert all(torch.equal(outline.weights.read(name), tensor) for name, tensor in weights.items())
    assert read_model_shape(folder).blocks == planned.blocks
    assert read_model_shape(folder).elements == planned.elements


def test_a_weight_that_is_stored_twice_is_refused(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint()
    weights = weights_of(folder)
    again = {"_orig_mod.model.norm.weight": weights["model.norm.weight"].clone()}
    safetensors.torch.save_file(weights | again, folder / "model.safetensors")
    assert "holds model.norm.weight as " in refusal(folder)


def test_two_files_with_the_same_weight_and_no_index_are_refused(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint()
    weights = weights_of(folder)
    (folder / "model.safetensors").rename(folder / "new.safetensors")
    safetensors.torch.save_file({"model.norm.weight": weights["model.norm.weight"]}, folder / "old.safetensors")
    assert "weight model.norm.weight is in new.safetensors and in old.safetensors" in refusal(folder)


def test_an_index_beside_another_set_of_weights_is_refused_with_both_names(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint()
    weights = weights_of(folder)
    places = {}
    for number, part in enumerate((list(weights)[::2], list(weights)[1::2]), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        safetensors.torch.save_file({name: weights[name] * 0 for name in part}, folder / file)
        places |= dict.fromkeys(part, file)
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))
    with pytest.raises(UnsupportedModel, match=r"two sets of weights: model\.safetensors, and the 2 files") as caught:
        weight_files(ContainedFolder(folder))
    assert "delete the older one" in caught.value.next_step
    (folder / "model.safetensors").unlink()
    assert weight_files(ContainedFolder(folder)) == sorted(set(places.values()))


def test_an_index_of_the_single_file_is_one_set(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint()
    places = dict.fromkeys(weights_of(folder), "model.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))
    assert weight_files(ContainedFolder(folder)) == ["model.safetensors"]


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        ("base_model.model.", "call merge_and_unload()"),
        ("language_model.", "a model of pictures and text"),
        ("net.", "there is net.model.embed_tokens.weight, and all begin with 'net.model.'"),
    ],
)
def test_other_prefixes_are_shown_with_a_name_that_was_found(
    prefix: str, message: str, make_checkpoint: MakeCheckpoint
) -> None:
    folder = make_checkpoint()
    rename(folder, lambda name: prefix + name)
    found = refusal(folder)
    assert "the weights hold no block of config.json's 2" in found
    assert message in found


@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.1.self_attn.masked_bias", "decoder.version"]
)
def test_what_a_network_computes_may_be_stored_and_is_not_read(name: str, make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint()
    planned = read_model_shape(folder)
    safetensors.torch.save_file(weights_of(folder) | {name: torch.ones(4)}, folder / "model.safetensors")
    assert name not in read_outline(folder).shapes
    assert read_model_shape(folder) == planned


@pytest.mark.parametrize("name", ["v_head.summary.weight", "model.layers.0.self_attn.k_proj.k_scale"])
def test_a_tensor_without_a_place_is_refused_by_name(name: str, make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint()
    safetensors.torch.save_file(weights_of(folder) | {name: torch.ones(4)}, folder / "model.safetensors")
    assert f"no place for the weight {name}" in refusal(folder)


def test_a_head_that_is_not_stored_and_not_tied_says_both_remedies(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint("mistral")
    weights = weights_of(folder)
    del weights["lm_head.weight"]
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    found = refusal(folder)
    assert "lm_head.weight is not among the weights (1 missing)" in found
    assert "tie_word_embeddings: true if the model has a tied head" in found


def test_a_tied_head_that_is_stored_must_be_the_embedding(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint()
    weights = weights_of(folder)
    head = weights["model.embed_tokens.weight"].clone()
    safetensors.torch.save_file(weights | {"lm_head.weight": head}, folder / "model.safetensors")
    assert "lm_head.weight" not in read_outline(folder).shapes
    safetensors.torch.save_file(weights | {"lm_head.weight": head + 0.5}, folder / "model.safetensors")
    assert "the stored lm_head.weight differs from it" in refusal(folder)


@pytest.mark.parametrize(
    ("value", "message"),
    [(float("nan"), "NaN or infinite"), (float("inf"), "NaN or infinite"), (1e5, r"holds 100000"), (1e-30, None)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_value_that_float16_cannot_hold_is_refused_with_the_weights_name(
    value: float, message: str | None, dtype: torch.dtype, make_checkpoint: MakeCheckpoint
) -> None:
    folder = make_checkpoint()
    name = "model.layers.1.mlp.down_proj.weight"
    weights = {each: tensor.to(dtype) for each, tensor in weights_of(folder).items()}
    weights[name][3, 5] = value
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    outline = read_outline(folder)
    if message is None:
        assert outline.weights.read(name)[3, 5] == 0
        return
    with pytest.raises(UnsupportedModel, match=f"weight {name} holds"):
        outline.weights.read(name)
