"""Small real tokenizers, and folders that hold nothing but a tokenizer and its settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tiny_checkpoint import byte_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PAGE = [
    "Once upon a time, there was 1 girl named Lily.",
    "  two  spaces\n\n\tand a tab; 12345 + 3.14 = ?",
    "Grüße, 世界 🙂 e\u0301 \u00e9 \u2028 １２３",
    "def f(x):\n    return x**2  # don't you'll WE'RE\r\n\r\n",
    "<s>hi</s> there <s> <|im_start|>user\nhey<|im_end|>\n",
    "</s> b</s>c",
    " ",
    "",
    "a",
]
"""Texts of many kinds: what a tokenizer gives for them tells it from others."""


def byte_tokenizer_with(*special: str) -> Tokenizer:
    """The tokenizer of one token per byte, with <s>, </s>, <pad> at 256 … 258 and more tokens behind them."""
    tokenizer = byte_tokenizer(None)
    tokenizer.add_special_tokens(list(special))
    return tokenizer


def plain_byte_tokenizer() -> Tokenizer:
    """One token per byte, and none beside them."""
    return Tokenizer.from_str(json.dumps(json.loads(byte_tokenizer(None).to_str()) | {"added_tokens": []}))


def sentence_piece_tokenizer() -> Tokenizer:
    """Llama 2's kind: <unk>, <s>, </s>, 256 bytes, and pieces that begin with ▁; no post-processor."""
    pieces = ["<unk>", "<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)], "▁", "a", "b", "▁a", "ab", "▁ab"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    merges = [("▁", "a"), ("a", "b"), ("▁a", "b")]
    model = models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(piece, normalized=False) for piece in pieces[:3]])
    return tokenizer


def write_tokenizer(folder: Path, tokenizer: Tokenizer | None, **settings: Any) -> Path:
    """Write tokenizer.json, where one is given, and a tokenizer_config.json of these settings."""
    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer is not None:
        tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", settings)
    return folder


def write_vocabulary_and_merges(folder: Path) -> dict[str, int]:
    """Write vocab.json and merges.txt of a byte-level vocabulary, and return the vocabulary."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = ["1 2", "12 3", "h e", "l l", "he ll", "hell o", "Ġ t", "Ġt he"]
    words = [*alphabet, *(merge.replace(" ", "") for merge in merges)]
    vocabulary = {word: number for number, word in enumerate(words)}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "vocab.json", vocabulary)
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    return vocabulary


def write_json(path: Path, document: object) -> None:
    """Write a JSON document as UTF-8."""
    path.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
