"""Tensors of every architecture that is read from GGUF files are what transformers' own reader makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFWriter, get_tensor_name_map, quantize

from cloud_service.pipeline.model.gguf.configuration import read_configuration
from cloud_service.pipeline.model.gguf.header import read_header
from cloud_service.pipeline.model.gguf.tensors import read_pieces, source_tensors

SIZES = {"block_count": 2, "context_length": 64, "embedding_length": 64, "feed_forward_length": 96}
HEADS = {
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.key_length": 16,
    "attention.value_length": 16,
}
RMS, LAYER_NORM = {"attention.layer_norm_rms_epsilon": 1e-5}, {"attention.layer_norm_epsilon": 1e-5}
ROPE = {"rope.freq_base": 10000.0, "rope.dimension_count": 16}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": HEADS | RMS | ROPE,
    "qwen2": HEADS | RMS | ROPE,
    "qwen3": HEADS | RMS | ROPE,
    "gemma2": HEADS | RMS | {"attention.sliding_window": 32},
    "gemma3": HEADS | RMS | ROPE | {"attention.sliding_window": 32},
    "phi3": HEADS | RMS | ROPE | {"attention.head_count_kv": 4},
    "gpt2": LAYER_NORM | {"attention.head_count": 4},
    "stablelm": HEADS | LAYER_NORM | ROPE | {"attention.head_count_kv": 4},
}
VOCABULARY = 96


def begin_file(path: Path, architecture: str) -> GGUFWriter:
    """Return a writer that has the keys of a model."""
    writer = GGUFWriter(path, architecture)
    for key, value in (SIZES | ARCHITECTURES[architecture]).items():
        add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
        add(f"{architecture}.{key}", value)
    writer.add_array("tokenizer.ggml.tokens", [f"t{index}" for index in range(VOCABULARY)])
    writer.add_uint32("tokenizer.ggml.padding_token_id", 0)
    return writer


def finish_file(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_model(path: Path, architecture: str) -> None:
    """Write random tensors under llama.cpp's names, of the shapes of transformers' network."""
    finish_file(begin_file(path.with_name("keys.gguf"), architecture))
    config = transformers.AutoConfig.from_pretrained(path.parent, gguf_file="keys.gguf")
    network = transformers.AutoModelForCausalLM.from_config(config)
    number = next(number for number, name in MODEL_ARCH_NAMES.items() if name == architecture)
    table = get_tensor_name_map(number, 2)
    generator = np.random.default_rng(0)
    writer = begin_file(path, architecture)
    for name, parameter in network.named_parameters():
        base, dot, ending = name.rpartition(".")
        is_conv1d = architecture == "gpt2" and parameter.dim() == 2 and ".h." in name
        shape = tuple(parameter.shape)[:: -1 if is_conv1d else 1]
        values = generator.normal(0, 0.5, shape).astype(np.float32)
        kind = GGMLQuantizationType.Q8_0 if values.ndim == 2 else GGMLQuantizationType.F32
        writer.add_tensor(f"{table.get_name(base)}{dot}{ending}", quantize(values, kind), raw_dtype=kind)
    finish_file(writer)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_tensor_is_the_one_that_transformers_loads(architecture: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_model(path, architecture)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    right = dict(theirs.named_parameters())
    with path.open("rb") as stream:
        header = read_header(stream, path.stat().st_size, path.name)
        config = read_configuration(header, None)
        found = source_tensors(header, config, list(right), architecture)
        for name, source in found.items():
            dtype = np.float32 if source.dtype == "F32" else np.float16
            values = np.frombuffer(b"".join(read_pieces(stream, source, path.name)), dtype).reshape(source.shape)
            assert torch.equal(torch.from_numpy(values.copy()).half(), right[name].half()), name
    stated = transformers.AutoConfig.for_model(**config)
    for key in ("hidden_size", "num_attention_heads", "num_hidden_layers", "tie_word_embeddings", "vocab_size"):
        assert getattr(stated, key) == getattr(theirs.config, key), key
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (None, None, 0)
