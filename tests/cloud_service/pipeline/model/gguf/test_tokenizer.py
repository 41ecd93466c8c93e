"""The tokenizer of a GGUF file gives the tokens that the model was trained with."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import transformers
from tiny_gguf import TOKENS, write_gguf
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from cloud_service.pipeline.model.gguf.header import GgufHeader, read_header
from cloud_service.pipeline.model.gguf.tokenizer import end_tokens, tokenizer_documents
from shared.errors import UnsupportedModel

PAGE = [
    "the other, then there",
    "  two spaces, a\ttab\nand\n\nlines  ",
    "It's 1234567 I'LL we'd",
    "naïve café 漢字 🤔 e\u0301",
    "<s>the</s><pad>",
    "",
]


def header_of(tmp_path: Path, **pairs: Any) -> GgufHeader:
    keys = {"add_bos": "add_bos_token", "kind": "model"}
    named = {f"tokenizer.ggml.{keys.get(key, key)}": value for key, value in pairs.items()}
    data = write_gguf(tmp_path / "m.gguf", pairs=named).read_bytes()
    return read_header(BytesIO(data), len(data), "m.gguf")


def tokenizer_of(header: GgufHeader) -> Tokenizer:
    return Tokenizer.from_str(tokenizer_documents(header)["tokenizer.json"].decode())


def trained_merges() -> tuple[list[str], list[str]]:
    """Return tokens and merges of a byte-level tokenizer that was trained on a few words and numbers."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([*PAGE, "1234567 12 123 the other then there naïve café"] * 3, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return list(model["vocab"]), [" ".join(merge) for merge in model["merges"]]


@pytest.mark.parametrize("split", ["gpt-2", "llama-bpe", "qwen2", "tekken"])
def test_byte_level_tokens_are_those_of_transformers_own_reader(split: str, tmp_path: Path) -> None:
    tokens, merges = trained_merges()
    pairs = {"tokens": [*tokens, "<s>", "</s>"], "merges": merges, "pre": split, "add_bos": False}
    count = len(tokens)
    pairs |= {"token_type": [1] * count + [3, 3], "bos_token_id": count, "eos_token_id": count + 1}
    ours = tokenizer_of(header_of(tmp_path, **pairs, padding_token_id=None))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    for text in PAGE:
        if split == "qwen2" and "\u0301" in text:  # the model's own tokenizer composes characters; that reader does not
            continue
        assert ours.encode(text, add_special_tokens=False).ids == theirs.encode(text, add_special_tokens=False), text
        assert ours.decode(ours.encode(text).ids, skip_special_tokens=False) == text


def test_digits_are_single_where_the_file_splits_as_smollm(tmp_path: Path) -> None:
    tokens = [*TOKENS, "12", "Ġ1"]
    header = header_of(tmp_path, tokens=tokens, token_type=[1] * len(tokens), merges=["1 2", "Ġ 1"], pre="smollm")
    tokenizer = tokenizer_of(header)
    assert tokenizer.encode("a 12", add_special_tokens=False).tokens == ["a", "Ġ", "1", "2"]


def test_qwen2_composes_characters_as_its_own_tokenizer_does(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(header_of(tmp_path, pre="qwen2"))
    assert tokenizer.encode("e\u0301").ids == tokenizer.encode("é").ids


def test_a_piece_that_is_a_token_is_not_merged_from_bytes_where_llama_3_would_not(tmp_path: Path) -> None:
    pairs = {"merges": ["t h"], "token_type": None}  # there is no merge that makes the token "the"
    for split, tokens in (("llama-bpe", ["the"]), ("gpt-2", ["th", "e"])):
        tokenizer = tokenizer_of(header_of(tmp_path, pre=split, **pairs))
        assert tokenizer.encode("the", add_special_tokens=False).tokens == tokens


SPM = {
    "kind": "llama",
    "pre": None,
    "merges": None,
    "tokens": ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁helo", "he", "ll", "llo", "▁he"],
    "token_type": [2, 3, 3, *([6] * 256), *([1] * 9)],
    "scores": [0.0] * 264 + [-2.0, -1.0, -3.0, -4.0],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "unknown_token_id": 0,
    "padding_token_id": None,
    "add_bos": None,
}


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        # worked by hand: the pair with the best score is merged first: ll, he, llo, ▁he
        ("hello", ["▁he", "llo"]),
        ("hello hell", ["▁he", "llo", "▁he", "ll"]),
        (" he", ["▁", "▁he"]),
        ("é", ["▁", "<0xC3>", "<0xA9>"]),
        ("<s>he", ["<s>", "▁he"]),
    ],
)
def test_sentence_piece_merges_by_score_and_falls_back_to_bytes(text: str, tokens: list[str], tmp_path: Path) -> None:
    tokenizer = tokenizer_of(header_of(tmp_path, **SPM))
    assert tokenizer.encode(text, add_special_tokens=False).tokens == tokens
    assert tokenizer.decode(tokenizer.encode("hello é").ids) == "hello é"


def test_bos_is_added_by_sentence_piece_and_llama_3_and_wherever_the_file_says_so(tmp_path: Path) -> None:
    assert tokenizer_of(header_of(tmp_path, **SPM)).encode("he").ids[0] == 1
    assert tokenizer_of(header_of(tmp_path, **SPM | {"add_bos": False})).encode("he").ids[0] != 1
    assert tokenizer_of(header_of(tmp_path, add_bos=None)).encode("the").tokens == ["the"]
    assert tokenizer_of(header_of(tmp_path, add_bos=None, pre="llama-bpe")).encode("the").tokens == ["<s>", "the"]
    assert tokenizer_of(header_of(tmp_path)).encode("the").tokens == ["<s>", "the"]


def test_what_ends_a_turn_is_an_end_too(tmp_path: Path) -> None:
    assert end_tokens(header_of(tmp_path, eot_token_id=259, eom_token_id=257)) == [257, 259]


def test_special_tokens_are_found_in_a_text_and_named(tmp_path: Path) -> None:
    documents = tokenizer_documents(header_of(tmp_path))
    tokenizer = Tokenizer.from_str(documents["tokenizer.json"].decode())
    assert tokenizer.encode("the<pad>the", add_special_tokens=False).tokens == ["the", "<pad>", "the"]
    assert tokenizer.get_vocab_size() == len(TOKENS)
    settings = json.loads(documents["tokenizer_config.json"])
    assert (settings["bos_token"], settings["eos_token"], settings["pad_token"]) == ("<s>", "</s>", "<pad>")


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ({"kind": "t5"}, "a tokenizer of the kind 't5'"),
        ({"tokens": None}, "has no tokenizer"),
        ({"pre": "superbpe"}, "splits texts as 'superbpe'"),
        ({"pre": None}, "does not say how texts are split"),
        ({"merges": ["t h e"]}, "has the merge 't h e'"),
        ({"merges": ["t q"]}, "out of vocabulary"),
        ({"bos_token_id": 9999}, "names the special token 9999"),
        (SPM | {"scores": [0.0]}, "does not have a score for every token"),
        (SPM | {"tokens": ["a" * 5000], "scores": [0.0]}, "has a token of 5000 characters"),
    ],
)
def test_a_tokenizer_that_cannot_be_right_is_refused(pairs: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        tokenizer_documents(header_of(tmp_path, **pairs))
