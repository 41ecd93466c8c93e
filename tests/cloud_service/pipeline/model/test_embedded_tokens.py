"""Tokens without a row in the embedding: left out where nothing needs them, else refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from checkpoint_tokenizers import CHATML, byte_tokenizer_with, write_tokenizer

from cloud_service.pipeline.model.embedded_tokens import without_rowless_tokens
from cloud_service.pipeline.model.tokenization import load_encoder
from shared.errors import UnsupportedModel

RESIZE = r"Next: .*resize_token_embeddings\(len\(tokenizer\)\)"


def test_an_added_token_without_a_row_becomes_ordinary_text(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path, byte_tokenizer_with("[PAD]"), eos_token="</s>", pad_token="[PAD]")
    encoder = load_encoder(folder, {"model_type": "llama", "vocab_size": 259}, 64)
    assert encoder.encode("a[PAD]</s>") == [64, *encoder.encode("["), *encoder.encode("PAD"), *encoder.encode("]"), 257]
    assert max(token["id"] for token in json.loads(encoder.to_json())["added_tokens"]) == 258
    assert encoder.settings.pad_token_id is None
    assert encoder.notes == ["left out of the tokenizer, for the model has no row for them: [PAD]"]


def test_a_tokenizer_whose_tokens_all_have_rows_stays_the_same() -> None:
    tokenizer = byte_tokenizer_with("[PAD]")
    assert without_rowless_tokens(tokenizer, 260, CHATML) == (tokenizer, ())


def test_a_token_that_the_template_writes_needs_a_row() -> None:
    tokenizer = byte_tokenizer_with("<|im_start|>", "<|im_end|>")
    with pytest.raises(
        UnsupportedModel, match=rf"writes '<\|im_end\|>', token 260, and the model has 260\n.*\n{RESIZE}"
    ):
        without_rowless_tokens(tokenizer, 260, CHATML)


def test_another_models_tokenizer_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match=rf"vocabulary has token 2\d\d, .*, and the model has 200\n.*\n{RESIZE}"):
        without_rowless_tokens(byte_tokenizer_with(), 200, None)


@pytest.mark.parametrize("end", ["[EOS]", {"content": "[EOS]"}])
def test_a_token_that_ends_texts_needs_a_row(tmp_path: Path, end: object) -> None:
    folder = write_tokenizer(tmp_path, byte_tokenizer_with("[EOS]"), eos_token=end)
    with pytest.raises(UnsupportedModel, match="begin or end with token 259, and the model has 259"):
        load_encoder(folder, {"model_type": "llama", "vocab_size": 259}, 64)
