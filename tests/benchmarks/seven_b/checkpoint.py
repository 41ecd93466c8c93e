"""A checkpoint of Llama-2-7B's shapes with random weights, in several files, with a small real tokenizer and texts.

Weights are float16, normal with standard deviation 0.02 around 0 (norms: 1), drawn block by block: costs one block in
memory. The tokenizer is byte-level BPE, trained on this project's own pages.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from cloud_service.pipeline.planning.family_shapes import shapes_of_config
from shared.architecture import safe_config

ROOT = Path(__file__).resolve().parents[3]
LLAMA_2_7B: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
_TOKENS_OF_THE_TOKENIZER = 4096
_STANDARD_DEVIATION = 0.02
_DOCUMENT_CHARACTERS = 600


def write_checkpoint(folder: Path, config: dict[str, Any]) -> None:
    """Write config.json, the tokenizer, and one file of weights for each block and one for what is beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Random weights\n")
    tokenizer = trained_tokenizer(min(_TOKENS_OF_THE_TOKENIZER, config["vocab_size"]))
    tokenizer.save(str(folder / "tokenizer.json"))
    words = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(words))
    owners: dict[str, str] = {}
    size = 0
    for number, (file, names) in enumerate(_files(config).items()):
        generator = torch.Generator().manual_seed(number)
        tensors = {name: _drawn(shape, generator) for name, shape in names.items()}
        safetensors.torch.save_file(tensors, folder / file, metadata={"format": "pt"})
        owners |= dict.fromkeys(tensors, file)
        size += sum(2 * tensor.numel() for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": owners}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def trained_tokenizer(size: int) -> Tokenizer:
    """Return byte-level BPE of at most ``size`` tokens; <s> and </s> are the first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(list(_pages()), trainer)
    return tokenizer


def write_texts(folder: Path, tokenizer: Tokenizer, *, rows: int, tokens: int) -> None:
    """Write ``text.jsonl`` to calibrate and evaluate on, and ``rows.jsonl`` of so many rows of so many tokens."""
    prose = " ".join(" ".join(_pages()).split())
    starts = range(0, len(prose) - _DOCUMENT_CHARACTERS, _DOCUMENT_CHARACTERS)
    documents = [prose[start : start + _DOCUMENT_CHARACTERS] for start in starts]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    lines = [_row(document, tokenizer, tokens) for document in documents[:rows]]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _row(document: str, tokenizer: Tokenizer, tokens: int) -> dict[str, str]:
    """Return a row of a few more tokens than asked for, which ``--max-tokens`` cuts; its last word is scored."""
    encoded = tokenizer.encode(document, add_special_tokens=False).ids[: tokens + 8]
    prompt, _, answer = tokenizer.decode(encoded).strip().rpartition(" ")
    return {"prompt": prompt, "completion": f" {answer}"}


def _files(config: dict[str, Any]) -> dict[str, dict[str, tuple[int, ...]]]:
    files: dict[str, dict[str, tuple[int, ...]]] = {}
    count = config["num_hidden_layers"] + 1
    for name, shape in shapes_of_config(safe_config(config)).items():
        block = int(name.split(".")[2]) + 1 if name.startswith("model.layers.") else 0
        files.setdefault(f"model-{block:05d}-of-{count:05d}.safetensors", {})[name] = tuple(shape)
    return files


def _drawn(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.float16)
    return torch.empty(shape).normal_(0, _STANDARD_DEVIATION, generator=generator).to(torch.float16)


def _pages() -> Iterator[str]:
    for folder in ("shared", "cloud_service", "device_client"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.read_text()
