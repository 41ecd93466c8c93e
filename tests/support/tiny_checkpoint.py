"""Tiny random checkpoints of every family, as Hugging Face folders, and a text to calibrate on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

COMMON = {"vocab_size": 260, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA_LIKE = COMMON | {
    "intermediate_size": 44,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 258,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": LLAMA_LIKE | {"tie_word_embeddings": True},
    "mistral": LLAMA_LIKE | {"tie_word_embeddings": False},
    "qwen2": LLAMA_LIKE | {"tie_word_embeddings": True, "bos_token_id": None},
    "qwen3": LLAMA_LIKE | {"tie_word_embeddings": False, "bos_token_id": None, "head_dim": 8},
    "opt": COMMON
    | {
        "ffn_dim": 44,
        "max_position_embeddings": 64,
        "word_embed_proj_dim": 32,
        "bos_token_id": 257,
        "eos_token_id": 257,
        "pad_token_id": 258,
        "dropout": 0.1,
    },
    "gemma2": LLAMA_LIKE
    | {
        "head_dim": 16, "sliding_window": 12, "query_pre_attn_scalar": 24, "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
    },
    "gemma3_text": LLAMA_LIKE
    | {
        "head_dim": 16, "sliding_window": 12, "query_pre_attn_scalar": 24, "rope_local_base_freq": 100.0,
        "rope_theta": 10_000.0, "rope_scaling": {"rope_type": "linear", "factor": 4.0},
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "phi3": LLAMA_LIKE
    | {
        "tie_word_embeddings": False, "original_max_position_embeddings": 24,
        "rope_scaling": {
            "type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 2.5, 3.0, 3.5]
        },
    },
    "gpt2": {
        "vocab_size": 260, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 44,
        "bos_token_id": 257, "eos_token_id": 257,
    },
    "gpt_neox": COMMON
    | {
        "intermediate_size": 44, "max_position_embeddings": 64, "rotary_pct": 0.5, "rotary_emb_base": 10_000,
        "bos_token_id": 257, "eos_token_id": 257, "tie_word_embeddings": False,
    },
    "granite": LLAMA_LIKE
    | {
        "tie_word_embeddings": True, "embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.5,
        "attention_multiplier": 0.25,
    },
    "olmo2": LLAMA_LIKE | {"tie_word_embeddings": False},
    "smollm3": LLAMA_LIKE | {"tie_word_embeddings": True, "no_rope_layers": [1, 0], "rope_theta": 10_000.0},
    "stablelm": LLAMA_LIKE | {"tie_word_embeddings": False, "partial_rotary_factor": 0.5, "use_qkv_bias": True},
}  # fmt: skip

UNTESTED = LLAMA_LIKE | {"tie_word_embeddings": True}
"""Of a family that is not here."""


def byte_tokenizer(bos: str | None) -> Tokenizer:
    """One token per byte; <s>, </s>, <pad> at 256 … 258; BOS added as a post-processor would."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>", "<pad>"])
    if bos is not None:
        from tokenizers.processors import TemplateProcessing

        tokenizer.post_processor = TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return tokenizer


def build_checkpoint(folder: Path, family: str = "llama", **changes: Any) -> Path:
    """Write a checkpoint of random weights; ``changes`` override configuration keys."""
    settings = CONFIGS.get(family, UNTESTED) | changes
    config = transformers.AutoConfig.for_model(family, **settings)
    network = transformers.AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, parameter in network.named_parameters():
        is_norm = ("norm" in name or ".ln_" in name) and name.endswith("weight")
        noise = torch.randn(parameter.shape, generator=generator)
        weights[name] = (noise * 0.02 + 1 if is_norm else noise * 0.15).half()
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(settings | {"model_type": family}))
    bos = {"llama": "<s>", "mistral": "<s>", "opt": "</s>", "gemma2": "<s>", "gemma3_text": "<s>"}.get(family)
    byte_tokenizer(bos).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": bos, "pad_token": "<pad>"}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 257, "transformers_version": "5"}))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Tiny\n")
    return folder


def write_text(path: Path, documents: int = 60) -> Path:
    """Write a .jsonl text of documents made from a few words."""
    words = [
        "the",
        "quick",
        "brown",
        "fox",
        "jumps",
        "over",
        "a",
        "lazy",
        "dog",
        "while",
        "seven",
        "small",
        "birds",
        "sing",
        "in",
        "tall",
        "green",
        "trees",
    ]
    with path.open("w") as file:
        for number in range(documents):
            chosen = [words[(number * 7 + position * (3 + number % 5)) % len(words)] for position in range(30)]
            file.write(json.dumps({"text": " ".join(chosen)}) + "\n")
    return path
