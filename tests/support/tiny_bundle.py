"""A tiny bundle made by hand, without the cloud's pipeline: two random Llama blocks, codebooks of 16 values."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from shared.bundle.config import (
    BundleConfig,
    DenseEntry,
    MaskProvenance,
    MemoryEstimates,
    ParameterCounts,
    QuantizedEntry,
    Quantizer,
    SourceModel,
    TokenizerSettings,
)
from shared.bundle.layout import ImageLayout
from shared.bundle.manifest import JSON_MEDIA_TYPE, SENSITIVE_TITLE, TOKENIZER_TITLE, TRUNK_TITLE, block_title
from shared.bundle.write import add_document, add_manifest, add_tensors
from shared.quantization.codec import QuantizedTensor
from shared.quantization.packing import pack_codes

TINY_CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 258,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
}
SENSITIVE_PER_TENSOR = 8


class TinyBundle(NamedTuple):
    """A published bundle of a random two-block Llama, and the fp16 weights it was made from (name → float32)."""

    layout: ImageLayout
    reference: str
    digest: str
    weights: dict[str, torch.Tensor]


def byte_tokenizer_json() -> str:
    """A tokenizer.json with one token per byte and <s>, </s>, <pad> at 256 … 258."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>", "<pad>"])
    return tokenizer.to_str()


def make_tiny_bundle(
    root: Path, *, reference: str = "tiny:latest", chunk_bytes: int = 4096, seed: int = 0
) -> TinyBundle:
    """Publish the tiny bundle under ``root``: per-row codebooks of 16 values, 8 random sensitive weights a tensor."""
    generator = torch.Generator().manual_seed(seed)
    hidden, middle, kv = 32, 44, 16
    linears = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (middle, hidden),
        "mlp.up_proj": (middle, hidden),
        "mlp.down_proj": (hidden, middle),
    }
    layout = ImageLayout.create(root)
    weights: dict[str, torch.Tensor] = {}
    layers, entries, dense, sensitive = [], [], [], {}
    for block in range(2):
        parts = {}
        for linear, shape in linears.items():
            name = f"model.layers.{block}.{linear}.weight"
            weight = (torch.randn(shape, generator=generator) * 0.1).half().float()
            weights[name] = weight
            lut = torch.quantile(weight, torch.linspace(0, 1, 16), dim=1).T.contiguous().half()
            codes = (weight[:, :, None] - lut.float()[:, None, :]).abs().argmin(dim=2)
            quantized = QuantizedTensor(pack_codes(codes, 4), shape[1], 4, lut=lut)
            parts |= {f"{name}.{part}": tensor.numpy() for part, tensor in quantized.parts.items()}
            order = torch.randperm(weight.numel(), generator=generator)[:SENSITIVE_PER_TENSOR]
            indices = order.sort().values
            sensitive[f"{name}.indices"] = indices.int().numpy()
            sensitive[f"{name}.rank"] = order.argsort().int().numpy().astype(np.int32)
            sensitive[f"{name}.values"] = weight.flatten()[indices].half().numpy()
            entries.append(
                QuantizedEntry(
                    name=name,
                    shape=shape,
                    blob=block_title(block),
                    bits=4,
                    codebook="per_row",
                    sensitive_count=SENSITIVE_PER_TENSOR,
                    relative_error=0.01,
                    weighted_relative_error=0.01,
                )
            )
        for norm in ("input_layernorm", "post_attention_layernorm"):
            name = f"model.layers.{block}.{norm}.weight"
            weights[name] = torch.ones(hidden)
            parts[name] = np.ones(hidden, np.float16)
            dense.append(DenseEntry(name=name, shape=[hidden], blob=block_title(block)))
        layers.append(add_tensors(layout, block_title(block), parts))
    weights["model.embed_tokens.weight"] = (torch.randn(259, hidden, generator=generator) * 0.1).half().float()
    weights["model.norm.weight"] = torch.ones(hidden)
    trunk = {name: weights[name].half().numpy() for name in ("model.embed_tokens.weight", "model.norm.weight")}
    dense += [DenseEntry(name=name, shape=list(tensor.shape), blob=TRUNK_TITLE) for name, tensor in trunk.items()]
    layers += [
        add_tensors(layout, TRUNK_TITLE, trunk),
        add_tensors(layout, SENSITIVE_TITLE, sensitive),
        add_document(layout, TOKENIZER_TITLE, byte_tokenizer_json().encode(), JSON_MEDIA_TYPE),
    ]
    quantized_count = sum(entry.element_count for entry in entries)
    dense_count = sum(int(np.prod(entry.shape)) for entry in dense)
    config = BundleConfig(
        producer="tests",
        source=SourceModel(id="tests/tiny"),
        architecture=TINY_CONFIG,
        tokenizer=TokenizerSettings(
            prepend_bos=True, bos_token_id=256, eos_token_ids=[257], pad_token_id=258, context_length=128
        ),
        mask=MaskProvenance(
            source="random",
            scope="per_tensor",
            sparsity=0.01,
            sensitive_count=SENSITIVE_PER_TENSOR * len(entries),
            calibration_text="none",
            calibration_sequences=0,
            calibration_tokens_per_sequence=0,
            calibration_seed=0,
            calibration_digest="sha256:" + "0" * 64,
        ),
        quantizer=Quantizer(method="lut", bits=4),
        tensors=entries,
        dense_parameters=dense,
        parameter_counts=ParameterCounts(
            total=quantized_count + dense_count,
            quantized=quantized_count,
            sensitive=SENSITIVE_PER_TENSOR * len(entries),
            dense=dense_count,
        ),
        memory=MemoryEstimates(weights_bytes=sum(layer.size for layer in layers), workspace_bytes=middle * hidden * 2),
        chunk_bytes=chunk_bytes,
    )
    manifest = add_manifest(layout, config, layers)
    layout.tag(reference, manifest)
    return TinyBundle(layout, reference, manifest.digest, weights)
