"""Tiny random GGUF files of several families, written by the package ``gguf`` as llama.cpp's converter does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as Storage
from gguf import GGUFWriter, dequantize, quantize
from tokenizers import pre_tokenizers

HIDDEN, MIDDLE, HEADS, KEY_HEADS, WIDTH, BLOCKS, VOCABULARY = 32, 64, 4, 2, 8, 2, 262
TEMPLATE = "{% for message in messages %}<s>{{ message['content'] }}</s>{% endfor %}"
TOKENS = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<s>", "</s>", "<pad>", "<unused>", "th", "the"]
TOKEN_TYPES = [1] * 256 + [3, 3, 3, 3, 1, 1]

_BLOCK = {
    "attn_q.weight": ("self_attn.q_proj.weight", (HEADS * WIDTH, HIDDEN)),
    "attn_k.weight": ("self_attn.k_proj.weight", (KEY_HEADS * WIDTH, HIDDEN)),
    "attn_v.weight": ("self_attn.v_proj.weight", (KEY_HEADS * WIDTH, HIDDEN)),
    "attn_output.weight": ("self_attn.o_proj.weight", (HIDDEN, HEADS * WIDTH)),
    "ffn_gate.weight": ("mlp.gate_proj.weight", (MIDDLE, HIDDEN)),
    "ffn_up.weight": ("mlp.up_proj.weight", (MIDDLE, HIDDEN)),
    "ffn_down.weight": ("mlp.down_proj.weight", (HIDDEN, MIDDLE)),
    "attn_norm.weight": ("input_layernorm.weight", (HIDDEN,)),
    "ffn_norm.weight": ("post_attention_layernorm.weight", (HIDDEN,)),
}
_BIASES = {
    "attn_q.bias": ("self_attn.q_proj.bias", (HEADS * WIDTH,)),
    "attn_k.bias": ("self_attn.k_proj.bias", (KEY_HEADS * WIDTH,)),
    "attn_v.bias": ("self_attn.v_proj.bias", (KEY_HEADS * WIDTH,)),
}
_HEAD_NORMS = {
    "attn_q_norm.weight": ("self_attn.q_norm.weight", (WIDTH,)),
    "attn_k_norm.weight": ("self_attn.k_norm.weight", (WIDTH,)),
}
_EXTRA = {"qwen2": _BIASES, "qwen3": _HEAD_NORMS}

Weights = dict[str, np.ndarray[Any, np.dtype[np.float32]]]


def random_weights(family: str = "llama", *, has_head: bool = False) -> Weights:
    """Return weights by their names in transformers."""
    generator = np.random.default_rng(0)
    shapes = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "model.norm.weight": (HIDDEN,)}
    if has_head:
        shapes["lm_head.weight"] = (VOCABULARY, HIDDEN)
    for name, shape in (_BLOCK | _EXTRA.get(family, {})).values():
        shapes |= {f"model.layers.{index}.{name}": shape for index in range(BLOCKS)}
    weights = {name: generator.normal(0, 0.15, shape).astype(np.float32) for name, shape in shapes.items()}
    return {name: weight + ("norm" in name) for name, weight in weights.items()}


def quantized(weight: Any, storage: Storage) -> Any:
    """Return what a matrix is after it was stored as ``storage``; vectors are stored as they are."""
    return dequantize(quantize(weight, storage), storage) if weight.ndim == 2 else weight


def write_gguf(
    path: Path,
    family: str = "llama",
    *,
    weights: Weights | None = None,
    storage: Storage = Storage.Q4_1,
    pairs: dict[str, Any] | None = None,
    extra_tensors: dict[str, Any] | None = None,
) -> Path:
    """Write a model of ``weights`` (by transformers' names); ``pairs`` override the pairs, None leaves one out."""
    weights = random_weights(family) if weights is None else weights
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = GGUFWriter(path, family)
    for key, value in (_pairs(family) | (pairs or {})).items():
        _add_pair(writer, key, value)
    for name, weight in weights.items():
        stored, kind = _arranged(name, weight, family), storage if weight.ndim == 2 else Storage.F32
        writer.add_tensor(_gguf_name(name), quantize(stored, kind), raw_dtype=kind)
    for name, tensor in (extra_tensors or {}).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _pairs(family: str) -> dict[str, Any]:
    return {
        "general.name": "Tiny",
        "general.license": "apache-2.0",
        f"{family}.block_count": BLOCKS,
        f"{family}.context_length": 64,
        f"{family}.embedding_length": HIDDEN,
        f"{family}.feed_forward_length": MIDDLE,
        f"{family}.attention.head_count": HEADS,
        f"{family}.attention.head_count_kv": KEY_HEADS,
        f"{family}.attention.key_length": WIDTH,
        f"{family}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{family}.rope.freq_base": 10000.0,
        f"{family}.rope.dimension_count": WIDTH,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": TOKEN_TYPES,
        "tokenizer.ggml.merges": ["t h", "th e"],
        "tokenizer.ggml.bos_token_id": 256,
        "tokenizer.ggml.eos_token_id": 257,
        "tokenizer.ggml.padding_token_id": 258,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": TEMPLATE,
    }


def _add_pair(writer: GGUFWriter, key: str, value: Any) -> None:
    match value:
        case None:
            return
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case list():
            writer.add_array(key, value)


def _gguf_name(name: str) -> str:
    whole = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    base, _, ending = name.rpartition(".")
    if base in whole:
        return f"{whole[base]}.{ending}"
    _, _, index, inner = name.split(".", 3)
    known = _BLOCK | _BIASES | _HEAD_NORMS
    return f"blk.{index}.{next(key for key, (other, _) in known.items() if other == inner)}"


def _arranged(name: str, weight: Any, family: str) -> Any:
    """Return the rows as llama.cpp has them: in llama's queries and keys, rotary pairs are neighbours."""
    if family != "llama" or not name.endswith(("q_proj.weight", "k_proj.weight")):
        return weight
    heads = HEADS if "q_proj" in name else KEY_HEADS
    return weight.reshape(heads, 2, WIDTH // 2, -1).swapaxes(1, 2).reshape(weight.shape)
