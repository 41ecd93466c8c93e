"""Loading a checkpoint: what is refused, and that the weights are the stored ones."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from cloud_service.pipeline.model.load_model import LoadedModel, load_model, read_outline
from cloud_service.pipeline.named_input import NamedInput
from cloud_service.pipeline.opening.identity import resolve
from cloud_service.progress import SilentProgress
from cloud_service.sources import SourcePolicy
from shared.api import PrepareRequest
from shared.errors import UnsupportedModel

MakeCheckpoint = Callable[..., Path]
LINEARS = {"llama": 14, "mistral": 14, "qwen2": 14, "qwen3": 14, "opt": 12}


def load(folder: Path) -> LoadedModel:
    return load_model(read_outline(folder), device="cpu")


def change_weight(folder: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights[name] = change(weights[name].clone())
    safetensors.torch.save_file(weights, folder / "model.safetensors")


@pytest.mark.parametrize("family", LINEARS)
def test_the_decoders_linear_weights_are_found_in_every_family(make_checkpoint: MakeCheckpoint, family: str) -> None:
    folder = make_checkpoint(family)
    model = load(folder)
    stored = safetensors.torch.load_file(folder / "model.safetensors")
    assert len(model.outline.linear_names) == LINEARS[family]
    assert set(model.outline.linear_names) <= {name for name, tensor in stored.items() if tensor.ndim == 2}
    assert not any("embed" in name or "head" in name for name in model.outline.linear_names)
    for name, tensor in stored.items():
        assert torch.equal(model.outline.weights.read(name).float(), tensor.float())


def test_nan_weights_are_refused_by_name(make_checkpoint: MakeCheckpoint) -> None:
    folder, name = make_checkpoint(), "model.layers.1.mlp.up_proj.weight"
    change_weight(folder, name, lambda weight: weight.index_fill_(0, torch.tensor([2]), float("nan")))
    with pytest.raises(UnsupportedModel, match=f"weight {name} holds NaN"):
        load(folder)


def test_weights_beyond_float16_are_refused_by_name(make_checkpoint: MakeCheckpoint) -> None:
    folder, name = make_checkpoint(), "model.norm.weight"
    change_weight(folder, name, lambda weight: weight.float() * 1e6)
    with pytest.raises(UnsupportedModel, match=rf"weight {name} holds .*needed|within ±65504"):
        load(folder)


def test_a_model_without_a_layer_is_refused(make_checkpoint: MakeCheckpoint) -> None:
    with pytest.raises(UnsupportedModel, match="num_hidden_layers is 0"):
        load(make_checkpoint(num_hidden_layers=0))


def test_a_missing_weight_is_named(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint()
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    with pytest.raises(UnsupportedModel, match=r"model\.norm\.weight is not among the weights"):
        load(folder)


def test_more_layers_than_the_configuration_has_are_refused_by_name(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint(num_hidden_layers=2)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    with pytest.raises(UnsupportedModel, match=r"no place for the weight model\.layers\.1\.input_layernorm\.weight"):
        load(folder)


def test_biases_that_the_configuration_does_not_have_are_refused_by_name(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint(attention_bias=True)
    config = json.loads((folder / "config.json").read_text())
    del config["attention_bias"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModel, match=r"no place for the weight model\.layers\.0\.self_attn\.k_proj\.bias"):
        load(folder)


def test_redundant_weights_of_old_checkpoints_are_left_out(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint(tie_word_embeddings=True)
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    parameters = load(folder).parameters
    assert set(weights) - set(parameters) == {"model.layers.0.self_attn.rotary_emb.inv_freq", "lm_head.weight"}


def test_a_head_that_differs_from_the_embedding_it_is_tied_to_is_refused(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint(tie_word_embeddings=True)
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"] + 1
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    with pytest.raises(UnsupportedModel, match="ties lm_head to the embedding"):
        load(folder)


def test_names_without_the_prefix_of_the_base_model_are_matched(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint(tie_word_embeddings=True)
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    bare = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
    safetensors.torch.save_file(bare, folder / "model.safetensors")
    model = load(folder)
    assert all(
        torch.equal(model.outline.weights.read(name).float(), tensor.float()) for name, tensor in weights.items()
    )


def test_a_weight_of_another_shape_is_refused_by_name(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint()
    change_weight(folder, "model.norm.weight", lambda weight: weight[:-1].clone())
    with pytest.raises(UnsupportedModel, match=r"model\.norm\.weight has the shape \(\d+,\)"):
        load(folder)


@pytest.mark.parametrize("family", LINEARS)
def test_a_model_spread_by_accelerate_computes_the_same(make_checkpoint: MakeCheckpoint, family: str) -> None:
    folder = make_checkpoint(family, num_hidden_layers=2)
    whole = load(folder)
    owners = {prefix.rstrip("."): "cpu" for prefix in whole.outline.block_prefixes}
    spread = load_model(read_outline(folder), device_map={"": "cpu"} | owners)
    tokens = torch.arange(12)[None]
    assert torch.equal(whole.network(tokens).logits, spread.network(tokens).logits)
    assert all("forward" in vars(block) for block in spread.blocks)  # accelerate's hooks


def test_a_spread_model_that_nobody_uses_is_gone_when_the_next_is_loaded(make_checkpoint: MakeCheckpoint) -> None:
    outline = read_outline(make_checkpoint(num_hidden_layers=1))
    weight = weakref.ref(load_model(outline, device_map={"": "cpu"}).parameters[outline.linear_names[0]])
    load_model(outline, device_map={"": "cpu"})
    assert weight() is None


def test_a_missing_shard_is_named(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint()
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UnsupportedModel, match=r"model-00001-of-00002\.safetensors"):
        load(folder)


def test_a_shard_outside_the_folder_is_refused(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint()
    index = {"weight_map": {"model.norm.weight": "../other/model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UnsupportedModel, match="plain file names"):
        load(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "config.json"),
        ("[]", "config.json holds list"),
        ('{"model_type": "gpt_neo"}', "model_type 'gpt_neo'"),
        ('{"model_type": "llama", "hidden_size": "big"}', "config.json"),
    ],
)
def test_a_bad_configuration_is_refused(make_checkpoint: MakeCheckpoint, content: str, message: str) -> None:
    folder = make_checkpoint()
    (folder / "config.json").write_text(content)
    with pytest.raises(UnsupportedModel, match=message):
        load(folder)


def test_keys_that_could_run_code_never_reach_transformers(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint()
    config = json.loads((folder / "config.json").read_text())
    config |= {"auto_map": {"AutoModelForCausalLM": "evil.Model"}, "_attn_implementation": "evil/kernel"}
    (folder / "config.json").write_text(json.dumps(config))
    model = load(folder)
    assert not {"auto_map", "_attn_implementation"} & set(model.outline.architecture)
    assert type(model.network).__name__ == "LlamaForCausalLM"


def test_a_damaged_weight_file_is_refused(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint()
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(UnsupportedModel, match="undamaged safetensors file"):
        load(folder)


def test_a_pickle_only_folder_is_refused(make_checkpoint: MakeCheckpoint, text: Path) -> None:
    folder = make_checkpoint()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    request = PrepareRequest.model_validate({"model": str(folder), "calibration": {"text": str(text)}})
    with pytest.raises(UnsupportedModel, match=r"only pickled weights \(pytorch_model.bin\)"):
        resolve(NamedInput.of_preparation(request), SourcePolicy(allow_any_local=True), SilentProgress())


def test_the_rotary_frequencies_are_not_rounded(make_checkpoint: MakeCheckpoint) -> None:
    frequencies = dict(load(make_checkpoint()).network.named_buffers())["model.rotary_emb.inv_freq"]
    expected = 1.0 / 10000.0 ** (torch.arange(0, 8, 2, dtype=torch.float64) / 8)
    torch.testing.assert_close(frequencies.double(), expected, rtol=1e-6, atol=0)
