"""Rows whose answers something judges: they may lack theirs, and they bring their fields."""

from __future__ import annotations

from typing import Any

import pytest
from byte_ids import byte_ids
from tiny_bundle import byte_tokenizer_json

from device_client.tasks.prompts import Prompts, prompts_of_run
from shared.bundle.config import TokenizerSettings
from shared.errors import DataError
from shared.model.tokenizer import BundleTokenizer
from shared.tasks.datasets import Record
from shared.tasks.rendering import NamedTaskRenderer, UserRowRenderer
from shared.tasks.templates import LabelTemplate, row_kind

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


def test_a_text_without_a_label_is_asked_as_a_labelled_text_is(tokenizer: BundleTokenizer) -> None:
    labels = LabelTemplate("{text} It was {label}", {"no": "bad", "yes": "good"})
    prompts = Prompts(tokenizer, UserRowRenderer(tokenizer, labels))
    rows = [record(text="Soup"), record(text="Soup", label=None), record(text="Soup", label=" "),
            record(text="Soup", label="yes", cook="Ann")]  # fmt: skip
    *asked, labelled = prompts.judged(rows, 8)
    assert {example.prompt for example in asked} == {(BOS, *byte_ids("Soup It was"))} == {labelled.prompt}
    assert [example.candidates for example in asked] == [(), (), ()]
    assert (len(labelled.candidates), labelled.right, labelled.row["cook"]) == (2, 1, "Ann")


def test_where_no_label_is_known_every_text_is_a_question(tokenizer: BundleTokenizer) -> None:
    prompts = Prompts(tokenizer, UserRowRenderer(tokenizer, LabelTemplate("{text} It was {label}", {})))
    again = prompts_of_run(prompts.as_config(), tokenizer)
    (example,) = again.judged([record(text="Soup", label="yes")], 8)
    assert (tokenizer.decode(example.prompt), example.candidates) == ("Soup It was", ())
    assert example.row == {"text": "Soup", "label": "yes"}


@pytest.mark.parametrize(
    "fields", [{"prompt": [USER]}, {"prompt": [USER], "completion": None}, {"prompt": [USER], "completion": []}]
)
def test_a_conversation_as_a_prompt_needs_no_completion(tokenizer: BundleTokenizer, fields: dict[str, Any]) -> None:
    prompts = Prompts(tokenizer, UserRowRenderer(tokenizer, None, "messages"))
    (example,) = prompts.judged([record(**fields)], 8)
    assert (tokenizer.decode(example.prompt), example.candidates) == ("[user]Hi[assistant]", ())


def test_an_empty_completion_is_none(tokenizer: BundleTokenizer) -> None:
    """A column that is empty in some lines of a table."""
    prompts = Prompts(tokenizer, UserRowRenderer(tokenizer, None))
    examples = prompts.judged([record(prompt="Once", completion=""), record(prompt="Once", completion="upon")], 8)
    assert [example.has_answer for example in examples] == [False, True]


def test_a_named_tasks_row_needs_no_label(tokenizer: BundleTokenizer) -> None:
    prompts = Prompts(tokenizer, NamedTaskRenderer("SST-2", "opt"))
    examples = prompts.judged([record(sentence="good"), record(sentence="good", label="1")], 8)
    assert [len(example.candidates) for example in examples] == [0, 2]
    assert examples[0].prompt == examples[1].prompt


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"label": "yes"}, "'text' is missing"),
        ({"completion": "yes"}, "'prompt' is missing"),
        ({"prompt": "  "}, "'prompt' is empty"),
        ({"messages": []}, "there are none"),
    ],
)
def test_a_row_without_a_prompt_is_refused(tokenizer: BundleTokenizer, fields: dict[str, Any], told: str) -> None:
    kind = row_kind(record(**fields))
    labels = LabelTemplate("{text} {label}", {}) if kind == "labelled" else None
    prompts = Prompts(tokenizer, UserRowRenderer(tokenizer, labels, "messages" if kind == "messages" else "completion"))
    with pytest.raises(DataError, match=f"line 3: {told}"):
        prompts.judged([record(**fields)], 8)
