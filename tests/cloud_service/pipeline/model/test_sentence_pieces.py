"""A folder with only a tokenizer.model: converted where its packages are installed, else refused with the next step."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from checkpoint_tokenizers import write_tokenizer

from cloud_service.pipeline.model.tokenization import load_encoder
from shared.errors import UnsupportedModel

TEXT = "Once upon a time there was a girl named Lily. She was 12 and saw 3 birds; they sang for her.\n" * 40
LLAMA = {"model_type": "llama", "bos_token_id": 1, "eos_token_id": 2}


def test_without_the_package_the_folder_is_refused_with_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)  # as if it were not installed
    (tmp_path / "tokenizer.model").write_bytes(b"pieces")
    with pytest.raises(UnsupportedModel, match=r"only tokenizer\.model, and sentencepiece is not installed") as caught:
        load_encoder(tmp_path, LLAMA, 64)
    assert "save_pretrained" in caught.value.next_step
    assert "pip install sentencepiece" in caught.value.next_step


@pytest.fixture
def pieces(tmp_path: Path) -> Any:
    """A small model of sentence pieces in the folder ``tmp_path``; Llama's kind."""
    sentencepiece = pytest.importorskip("sentencepiece")
    (tmp_path / "text.txt").write_text(TEXT)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text.txt"), model_prefix=str(tmp_path / "tokenizer"), vocab_size=340, model_type="bpe",
        byte_fallback=True, unk_id=0, bos_id=1, eos_id=2, pad_id=-1, normalization_rule_name="identity",
        remove_extra_whitespaces=False, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_llamas_sentence_pieces_become_a_tokenizer_that_gives_their_ids(
    tmp_path: Path, pieces: Any, family: str
) -> None:
    architecture = LLAMA | {"model_type": family, "vocab_size": pieces.vocab_size()}
    encoder = load_encoder(write_tokenizer(tmp_path, None), architecture, 64)
    text = "Lily saw 12 birds, and Grüße\n  sang 世界."
    assert encoder.encode(text) == pieces.encode(text)
    assert (encoder.bos, encoder.settings.eos_token_ids) == ([1], [2])


def test_a_family_whose_rules_are_others_is_refused(tmp_path: Path, pieces: Any) -> None:
    with pytest.raises(UnsupportedModel, match="the conversion of this family gives other tokens for 'Once upon"):
        load_encoder(tmp_path, {"model_type": "opt"}, 64)


def test_what_is_not_sentence_pieces_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("sentencepiece")
    (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")  # as other tokenizers call their file too
    with pytest.raises(UnsupportedModel, match=r"tokenizer\.model \(14 bytes\) holds no sentence pieces") as caught:
        load_encoder(tmp_path, LLAMA, 64)
    assert "save_pretrained" in caught.value.next_step
