"""Which tokens begin and end a text, wherever a model's makers have stated them."""

from __future__ import annotations

from typing import Any

import pytest
from checkpoint_tokenizers import CHATML, byte_tokenizer_with, plain_byte_tokenizer, sentence_piece_tokenizer
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from cloud_service.pipeline.model.special_tokens import beginning, endings, turn_ending, well_known_ending
from shared.bundle.config import TokenizerSettings
from shared.errors import UnsupportedModel
from shared.model.tokenizer import BundleTokenizer

LLAMA = {"model_type": "llama", "bos_token_id": 1, "eos_token_id": 2}


def putting(tokenizer: Tokenizer, *tokens: str) -> Tokenizer:
    """The tokenizer with these tokens before each text."""
    special = [(token, tokenizer.token_to_id(token)) for token in tokens]
    tokenizer.post_processor = TemplateProcessing(single=[*tokens, "$A"], special_tokens=special)
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "settings", "architecture", "expected"),
    [
        (putting(byte_tokenizer_with(), "<s>"), {"bos_token": "<s>"}, LLAMA, (True, 256)),
        (putting(byte_tokenizer_with(), "</s>"), {}, {"model_type": "opt"}, (True, 257)),
        # A llama whose tokenizer adds nothing, as SmolLM2: no rule of the family, and none because a token is named.
        (byte_tokenizer_with(), {"bos_token": {"content": "<s>"}}, LLAMA, (False, 256)),
        (putting(byte_tokenizer_with()), {"bos_token": "<s>"}, LLAMA, (False, 256)),
        (plain_byte_tokenizer(), {}, {"model_type": "qwen2", "bos_token_id": 7}, (False, None)),
        # Sentence pieces of Llama without a word about it.
        (sentence_piece_tokenizer(), {"bos_token": "<s>"}, LLAMA, (True, 1)),
        (sentence_piece_tokenizer(), {}, LLAMA, (True, 1)),
        (sentence_piece_tokenizer(), {"bos_token": "<s>"}, {"model_type": "qwen2"}, (False, 1)),
        (putting(sentence_piece_tokenizer()), {"bos_token": "<s>"}, LLAMA, (False, 1)),
    ],
)
def test_a_text_begins_with_what_its_tokenizer_puts_there(
    tokenizer: Tokenizer, settings: dict[str, Any], architecture: dict[str, Any], expected: tuple[bool, int | None]
) -> None:
    assert beginning(tokenizer, settings, architecture) == expected


def test_two_tokens_before_each_text_are_refused() -> None:
    with pytest.raises(UnsupportedModel, match="puts 2 tokens before each text"):
        beginning(putting(byte_tokenizer_with(), "<s>", "<pad>"), {}, LLAMA)


@pytest.mark.parametrize(
    ("settings", "generation", "expected"),
    [
        ({}, {}, [2]),
        ({"eos_token": "</s>"}, {}, [257, 2]),
        ({"eos_token": {"content": "</s>"}}, {"eos_token_id": 257}, [257]),
        ({"eos_token": "</s>"}, {"eos_token_id": [256, 257, 258]}, [257, 256, 258]),
        ({"eos_token": "unknown"}, {"eos_token_id": [True, "9", -1, 5]}, [5]),
    ],
)
def test_every_stated_end_counts_and_the_tokenizers_own_is_the_first(
    settings: dict[str, Any], generation: dict[str, Any], expected: list[int]
) -> None:
    assert endings(byte_tokenizer_with(), settings, LLAMA, generation) == expected


def turn_ending_of(template: str | None) -> int | None:
    tokenizer = byte_tokenizer_with("<|im_start|>", "<|im_end|>", "<end_of_turn>")
    settings = TokenizerSettings(prepend_bos=False, context_length=64, eos_token_ids=[257], chat_template=template)
    return turn_ending(BundleTokenizer(tokenizer.to_str(), settings))


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, 260),
        ("{% for m in messages %}{{ m.content | trim }} <end_of_turn>\n{% endfor %}", 261),
        ("{% for m in messages %}[INST] {{ m.content }}{{ eos_token }}{% endfor %}", 257),
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", None),
        ("{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}", None),
        ("{{ messages[0].content }}<|im_end|>", None),
        (None, None),
    ],
)
def test_the_token_that_ends_the_assistants_turn_is_found_in_the_template(
    template: str | None, expected: int | None
) -> None:
    assert turn_ending_of(template) == expected


def test_a_well_known_name_tells_the_end_of_a_model_that_states_none() -> None:
    assert well_known_ending(byte_tokenizer_with("<|im_end|>")) == 259
    assert well_known_ending(byte_tokenizer_with()) == 257
    assert well_known_ending(plain_byte_tokenizer()) is None
