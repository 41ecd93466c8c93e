"""Rows whose answers something judges: they may lack theirs, and they bring their fields."""

from __future__ import annotations

from typing import Any

import pytest
from byte_ids import byte_ids
from tiny_bundle import byte_tokenizer_json

from device_client.tasks.prompts import Prompts
from shared.bundle.config import TokenizerSettings
from shared.errors import DataError
from shared.model.tokenizer import BundleTokenizer
from shared.tasks.datasets import Record
from shared.tasks.rendering import UserRowRenderer

BOS, EOS = 256, 257
CHAT = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}" \
    "{% if add_generation_prompt %}[assistant]{% endif %}"  # fmt: skip
USER, ASSISTANT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}


@pytest.fixture(scope="module")
def tokenizer() -> BundleTokenizer:
    settings = TokenizerSettings(
        bos_token_id=BOS, eos_token_ids=[EOS], prepend_bos=True, context_length=64, chat_template=CHAT
    )
    return BundleTokenizer(byte_tokenizer_json(), settings)


def record(**fields: Any) -> Record:
    return Record(fields, "rows.jsonl line 3")


def test_a_prompt_alone_is_an_example_without_candidates_that_keeps_its_fields(tokenizer: BundleTokenizer) -> None:
    prompts = Prompts(tokenizer, UserRowRenderer(tokenizer, None))
    (example,) = prompts.judged([record(prompt="Once", wanted="upon")], 8)
    assert (list(example.prompt), example.candidates) == ([BOS, *byte_ids("Once")], ())
    assert (example.row, example.has_answer) == ({"prompt": "Once", "wanted": "upon"}, False)
    assert (example.token_count, example.is_free) == (5, True)


def test_a_row_with_its_answer_is_the_example_that_it_always_is(tokenizer: BundleTokenizer) -> None:
    prompts = Prompts(tokenizer, UserRowRenderer(tokenizer, None))
    row = record(prompt="Once", completion=" upon")
    assert prompts.judged([row], 8) == prompts.examples([row])
    assert prompts.judged([row], 8)[0].row == row.fields


def test_a_conversation_that_ends_with_a_question_is_asked_once(tokenizer: BundleTokenizer) -> None:
    prompts = Prompts(tokenizer, UserRowRenderer(tokenizer, None, "messages"))
    asked, answered = prompts.judged(
        [record(messages=[USER, ASSISTANT, USER]), record(messages=[USER, ASSISTANT])], 8
    )  # fmt: skip
    assert tokenizer.decode(asked.prompt).endswith("[user]Hi[assistant]")
    assert (asked.candidates, len(answered.candidates)) == ((), 1)


def test_a_long_prompt_leaves_room_for_the_answer(tokenizer: BundleTokenizer) -> None:
    prompts = Prompts(tokenizer, UserRowRenderer(tokenizer, None))
    (example,) = prompts.judged([record(prompt="x" * 100)], 8)
    assert (len(example.prompt), example.truncated_tokens) == (64 - 8, 100 - 55)


def test_rows_of_two_kinds_are_refused(tokenizer: BundleTokenizer) -> None:
    prompts = Prompts(tokenizer, UserRowRenderer(tokenizer, None))
    with pytest.raises(DataError, match="line 3: a messages row among completion rows"):
        prompts.judged([record(messages=[USER])], 8)
