"""A GGUF file becomes the Hugging Face folder that transformers makes of it, bit for bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_gguf
import torch
import transformers
from gguf import GGMLQuantizationType as Storage
from tiny_gguf import quantized, random_weights, write_gguf

from cloud_service.pipeline.model.checkpoint_weights import CheckpointWeights
from cloud_service.pipeline.model.gguf.checkpoint import GgufFile, missing_copy_bytes, read_gguf, write_checkpoint
from cloud_service.pipeline.model.gguf.configuration import read_configuration
from cloud_service.pipeline.model.gguf.header import read_header
from cloud_service.pipeline.model.load_model import load_model, read_outline
from cloud_service.progress import SilentProgress
from shared.errors import Interrupted, UnsupportedModel


def converted(path: Path, target: Path) -> GgufFile:
    file = read_gguf(path.parent, path.name)
    write_checkpoint(file, target, SilentProgress())
    return file


@pytest.mark.parametrize("storage", [Storage.Q4_1, Storage.Q4_0, Storage.Q8_0, Storage.F16, Storage.BF16, Storage.F32])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_every_weight_is_what_was_stored_rounded_to_float16(family: str, storage: Storage, tmp_path: Path) -> None:
    weights = random_weights(family, has_head=family == "qwen3")
    converted(write_gguf(tmp_path / "m.gguf", family, weights=weights, storage=storage), tmp_path / "folder")
    outline = read_outline(tmp_path / "folder")
    assert set(outline.shapes) == set(weights)
    for name, weight in weights.items():  # rows are quantised one by one, so their order does not matter
        right = torch.from_numpy(np.array(quantized(weight, storage))).half()
        assert torch.equal(outline.weights.read(name), right), name


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_network_gives_the_logits_of_transformers_own_reader(family: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", family)
    converted(path, tmp_path / "folder")
    ours = load_model(read_outline(tmp_path / "folder"), device="cpu").network
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32)
    for parameter in theirs.parameters():
        parameter.data = parameter.data.half().float()
    tokens = torch.tensor([[256, 5, 77, 104, 9]])
    with torch.no_grad():
        right = theirs(tokens).logits
        assert torch.allclose(ours(tokens).logits, right, atol=1e-5)  # float32, summed in the same order or nearly


def test_a_model_is_written_in_several_files_where_it_is_large(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    file = read_gguf(write_gguf(tmp_path / "m.gguf").parent, "m.gguf")
    write_checkpoint(file, folder, SilentProgress(), shard_bytes=8192)
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 2
    assert set(CheckpointWeights(folder).shapes) == set(random_weights())


def test_a_copy_that_was_interrupted_continues_with_the_files_that_are_finished(tmp_path: Path) -> None:
    class StopsHalfway(SilentProgress):
        def advance(self, done: int) -> None:
            if done > 20_000:
                raise Interrupted("asked to stop")

    folder = tmp_path / "folder"
    file = read_gguf(write_gguf(tmp_path / "m.gguf").parent, "m.gguf")
    assert missing_copy_bytes(file, folder) == file.copied_bytes
    with pytest.raises(Interrupted):
        write_checkpoint(file, folder, StopsHalfway(), shard_bytes=8192)
    finished = {path: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    assert finished
    assert 0 < missing_copy_bytes(file, folder) < file.copied_bytes
    assert not list(folder.glob("*.partial"))
    write_checkpoint(file, folder, SilentProgress(), shard_bytes=8192)
    assert finished.items() <= {path: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}.items()
    assert missing_copy_bytes(file, folder) == 0
    write_checkpoint(file, tmp_path / "at-once", SilentProgress(), shard_bytes=8192)
    for path in (tmp_path / "at-once").iterdir():
        assert path.read_bytes() == (folder / path.name).read_bytes()


def test_a_weight_beyond_float16_is_refused_by_name(tmp_path: Path) -> None:
    weights = random_weights()
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = 1e5
    file = read_gguf(write_gguf(tmp_path / "m.gguf", weights=weights, storage=Storage.BF16).parent, "m.gguf")
    with pytest.raises(UnsupportedModel, match=r"99840 in the tensor 'blk.1.ffn_up.weight'"):
        write_checkpoint(file, tmp_path / "folder", SilentProgress())
    assert not list((tmp_path / "folder").glob("*.safetensors"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pairs": {"general.type": "adapter"}}, "holds: adapter"),
        ({"pairs": {"split.count": 3}}, "one of 3 parts"),
        ({"pairs": {"llama.block_count": 3}}, "states 3 blocks and holds 2"),
        ({"pairs": {"llama.feed_forward_length": 65}}, r"has the shape \(64, 32\) in 'blk.0.ffn_gate.weight'"),
        ({"pairs": {"llama.rope.scaling.type": "longrope"}}, "scales its positions by 'longrope'"),
        ({"pairs": {"llama.attention.head_count": None}}, "does not say its llama.attention.head_count"),
        ({"extra_tensors": {"blk.0.attn_q.lora_a": np.zeros((8, 32), np.float32)}}, "which llama has no place for"),
        ({"extra_tensors": {"rope_freqs.weight": np.full(4, 3, np.float32)}}, "in its own way"),
    ],
)
def test_what_is_not_a_whole_known_model_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", **changes)
    with pytest.raises(UnsupportedModel, match=message):
        read_gguf(path.parent, path.name)


def test_an_architecture_that_is_not_known_is_refused_by_name(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", "rwkv7", weights={})
    with pytest.raises(UnsupportedModel, match="has the architecture 'rwkv7'"):
        read_gguf(path.parent, path.name)


def test_a_tensor_that_is_missing_is_named(tmp_path: Path) -> None:
    weights = random_weights()
    del weights["model.layers.1.self_attn.v_proj.weight"]
    path = write_gguf(tmp_path / "m.gguf", weights=weights)
    with pytest.raises(UnsupportedModel, match=r"has no tensor for model.layers.1.self_attn.v_proj.weight"):
        read_gguf(path.parent, path.name)


def test_llama_3s_factors_become_its_scaled_positions(tmp_path: Path) -> None:
    # Worked out by transformers itself: the ratio of plain and scaled frequencies of rope_type llama3.
    scaling = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    sizes = {"hidden_size": 512, "num_attention_heads": 4, "num_hidden_layers": 1, "vocab_size": 8}
    frequencies = [
        transformers.LlamaModel(transformers.LlamaConfig(**sizes, rope_parameters=rope)).rotary_emb.inv_freq
        for rope in ({"rope_type": "default", "rope_theta": 10000.0}, scaling)
    ]
    factors = (frequencies[0] / frequencies[1]).numpy()
    assert any(1.1 < factor < 7.9 for factor in factors)  # there are some between the two ends
    path = write_gguf(tmp_path / "m.gguf", pairs={"llama.attention.key_length": 128, "llama.rope.dimension_count": 128})
    with path.open("rb") as stream:
        header = read_header(stream, path.stat().st_size, path.name)
    assert read_configuration(header, factors.tolist())["rope_parameters"] == scaling


def test_the_folder_has_licence_tokenizer_and_template_of_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    converted(write_gguf(tmp_path / "m.gguf", pairs={"tokenizer.ggml.eot_token_id": 259}), folder)
    assert "license: apache-2.0" in (folder / "README.md").read_text()
    assert (folder / "chat_template.jinja").read_text() == tiny_gguf.TEMPLATE
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [257, 259]
    config = json.loads((folder / "config.json").read_text())
    assert (config["vocab_size"], config["tie_word_embeddings"], config["head_dim"]) == (262, True, 8)


def test_the_same_file_gives_the_same_folder_wherever_it_lies(tmp_path: Path) -> None:
    first = write_gguf(tmp_path / "a" / "m.gguf")
    (tmp_path / "b" / "c").mkdir(parents=True)
    shutil.copyfile(first, tmp_path / "b" / "c" / "m.gguf")
    converted(first, tmp_path / "one")
    converted(tmp_path / "b" / "c" / "m.gguf", tmp_path / "two")
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_a_git_lfs_pointer_says_what_fetches_the_file(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(UnsupportedModel, match="is a git-lfs pointer") as caught:
        read_gguf(tmp_path, "m.gguf")
    assert "git lfs pull" in caught.value.next_step
