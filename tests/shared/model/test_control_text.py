"""Control tokens in a person's text are letters; those that a template writes are tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from byte_ids import byte_ids
from tiny_bundle import byte_tokenizer_json
from tokenizers import Tokenizer

from shared.bundle.config import TokenizerSettings
from shared.errors import DataError
from shared.model.control_text import MARK, ControlText
from shared.model.tokenizer import BundleTokenizer

BOS, EOS = 256, 257


def tokenizer_of(tokenizer_json: str) -> BundleTokenizer:
    fields = {"bos_token_id": BOS, "eos_token_ids": [EOS], "prepend_bos": True, "context_length": 64}
    return BundleTokenizer(tokenizer_json, TokenizerSettings(**fields))  # type: ignore[arg-type]


@pytest.fixture
def tokenizer() -> BundleTokenizer:
    return tokenizer_of(byte_tokenizer_json())


def spelt(tokenizer: BundleTokenizer, token: int) -> str:
    text = tokenizer.text_of(token)
    assert text is not None
    return text


@pytest.mark.parametrize("token", [BOS, EOS])
def test_a_marked_spelling_becomes_the_tokens_of_its_letters(tokenizer: BundleTokenizer, token: int) -> None:
    text = f"a {spelt(tokenizer, token)} b"
    assert token in tokenizer.encode(text)
    assert tokenizer.encode(tokenizer.as_text(text)) == byte_ids(text)


def test_a_templates_spellings_stay_tokens_beside_marked_ones(tokenizer: BundleTokenizer) -> None:
    end = spelt(tokenizer, EOS)
    written = f"{end}{tokenizer.as_text(f'x{end}')}{end}"
    assert tokenizer.encode(written) == [EOS, *byte_ids(f"x{end}"), EOS]


def test_text_without_control_tokens_is_not_changed(tokenizer: BundleTokenizer) -> None:
    for text in ("plain", "", "a < b | c >", "Grüße, 世界!"):
        assert tokenizer.as_text(text) == text


def test_a_mark_in_a_persons_text_is_no_way_round(tokenizer: BundleTokenizer) -> None:
    end = spelt(tokenizer, EOS)
    text = f"{end[0]}{MARK}{end[1:]}"
    assert tokenizer.as_text(text) == text.replace(MARK, "\ufffd")
    assert EOS not in tokenizer.encode(tokenizer.as_text(f"{end}{end[:-1]}{end}"))


def test_an_end_token_that_is_not_marked_special_is_a_control_token_all_the_same() -> None:
    document = json.loads(byte_tokenizer_json())
    for token in document["added_tokens"]:
        token["special"] = False
    tokenizer = tokenizer_of(json.dumps(document))
    end = spelt(tokenizer, EOS)
    assert tokenizer.encode(tokenizer.as_text(end)) == byte_ids(end)


def test_added_tokens_that_control_nothing_stay_tokens() -> None:
    document = json.loads(byte_tokenizer_json())
    more = dict(document["added_tokens"][0], id=259, content="<think>", special=False)
    document["added_tokens"].append(more)
    tokenizer = tokenizer_of(json.dumps(document))
    end = spelt(tokenizer, EOS)
    assert tokenizer.encode(tokenizer.as_text(f"<think>{end}")) == [259, *byte_ids(end)]


def test_a_tokenizer_without_letters_for_a_spelling_refuses_it() -> None:
    words = {"a": 0, "</s>": 1, "[UNK]": 2}
    document = {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None,
        "decoder": None, "added_tokens": [], "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "[UNK]"},
    }  # fmt: skip
    tokenizer_json = json.dumps(document)
    document["added_tokens"] = [
        {"id": 1, "content": "</s>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}
    ]  # fmt: skip
    assert Tokenizer.from_str(tokenizer_json).encode("a </s>").ids == [0, 1]
    control = ControlText(json.dumps(document), [1])
    with pytest.raises(DataError, match="spells the control token '</s>'"):
        control.encode(control.as_text("a </s>"))


@pytest.mark.parametrize("name", ["stories260K-hf", "picollama-real"])
def test_nothing_else_changes_its_tokens(real_data: Path, name: str) -> None:
    tokenizer_json = (real_data / "models" / name / "tokenizer.json").read_text()
    plain, control = Tokenizer.from_str(tokenizer_json), ControlText(tokenizer_json, [1, 2])
    for text in ("</s>user\nHello  <b> there</s> x</s><s>\nHi", "<s> a</s>", "</s>", " é世 </s> b "):
        ids = plain.encode(text, add_special_tokens=False).ids
        assert control.encode(text + MARK) == ids
