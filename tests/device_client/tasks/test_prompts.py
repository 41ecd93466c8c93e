"""Rows and questions become tokens in one way, and a run's configuration keeps that way."""

from __future__ import annotations

import json
from typing import Any

import pytest
from byte_ids import byte_ids
from tiny_bundle import byte_tokenizer_json

from device_client.tasks.prompts import Prompts, count_spelling_rows, prompts_of_run
from shared.bundle.config import TokenizerSettings
from shared.errors import DataError, InvalidRequest
from shared.model.tokenizer import BundleTokenizer
from shared.tasks.datasets import Record
from shared.tasks.rendering import NamedTaskRenderer, RowRenderer, UserRowRenderer
from shared.tasks.templates import LabelTemplate

BOS, EOS = 256, 257
CHAT = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}{{ eos_token }}{% endfor %}" \
    "{% if add_generation_prompt %}[assistant]{% endif %}"  # fmt: skip
USER = {"role": "user", "content": "Hi"}


@pytest.fixture(scope="module")
def tokenizer() -> BundleTokenizer:
    settings = TokenizerSettings(
        bos_token_id=BOS, eos_token_ids=[EOS], prepend_bos=True, context_length=64, chat_template=CHAT
    )
    return BundleTokenizer(byte_tokenizer_json(), settings)


def record(**fields: Any) -> Record:
    return Record(fields, "rows.jsonl line 3")


def completions(tokenizer: BundleTokenizer, **options: Any) -> Prompts:
    return Prompts(tokenizer, UserRowRenderer(tokenizer, None), **options)


def chats(tokenizer: BundleTokenizer, **options: Any) -> Prompts:
    return Prompts(tokenizer, UserRowRenderer(tokenizer, None, "messages"), **options)


def labels(tokenizer: BundleTokenizer, template: str = "{text} It was {label}") -> Prompts:
    return Prompts(tokenizer, UserRowRenderer(tokenizer, LabelTemplate(template, {"a": "good", "b": "bad"})))


@pytest.mark.parametrize("prompt", ["Once", "Once ", "Once   ", "<s>Once", "<s>Once "])
def test_a_completions_question_has_the_tokens_of_its_rows_prompt(tokenizer: BundleTokenizer, prompt: str) -> None:
    prompts = completions(tokenizer)
    (example,) = prompts.examples([record(prompt=prompt, completion="Tim")])
    assert prompts.question(prompt).ids == list(example.prompt) == [BOS, *byte_ids("Once")]


def test_a_chats_question_has_the_tokens_of_its_rows_prompt(tokenizer: BundleTokenizer) -> None:
    prompts = chats(tokenizer)
    (example,) = prompts.examples([record(messages=[USER, {"role": "assistant", "content": "Lily"}])])
    assert (
        prompts.question("Hi").ids
        == list(example.prompt)
        == [BOS, *byte_ids("[user]Hi"), EOS, *byte_ids("[assistant]")]
    )
    (after,) = prompts.examples(
        [record(messages=[{"role": "system", "content": "S"}, USER, {"role": "assistant", "content": "Lily"}])]
    )
    assert prompts.question("Hi", system="S").ids == list(after.prompt)
    assert prompts.conversation({"messages": [{"role": "system", "content": "S"}, USER]}).ids == list(after.prompt)


@pytest.mark.parametrize("text", ["fine", " fine\n"])
def test_a_labelled_rows_question_has_the_tokens_of_its_rows_prompt(tokenizer: BundleTokenizer, text: str) -> None:
    prompts = labels(tokenizer)
    (example,) = prompts.examples([record(text=text, label="a")])
    assert prompts.question(text).ids == list(example.prompt) == [BOS, *byte_ids("fine It was")]


def test_a_named_tasks_question_is_its_fields(tokenizer: BundleTokenizer) -> None:
    prompts = Prompts(tokenizer, NamedTaskRenderer("CB", "llama"))
    fields = {"premise": "A.", "hypothesis": "B"}
    (example,) = prompts.examples([record(**fields, label="neutral")])
    assert prompts.question(json.dumps(fields)).ids == list(example.prompt)
    with pytest.raises(InvalidRequest, match="is not a JSON object") as caught:
        prompts.question("A.")
    assert "--raw" in caught.value.next_step
    with pytest.raises(DataError, match="'hypothesis' is missing"):
        prompts.question('{"premise": "A."}')


def test_a_question_is_cut_as_rows_are(tokenizer: BundleTokenizer) -> None:
    question = completions(tokenizer, max_tokens=6).question("0123456789")
    assert (question.ids, question.lost_tokens) == ([BOS, *byte_ids("6789")], 6)
    assert completions(tokenizer, max_tokens=99).question("x" * 70).lost_tokens == 8  # 64 − BOS − one to answer


@pytest.mark.parametrize(
    ("control_tokens", "answer"),
    [("text", [*byte_ids(" was <s>20</s> now"), EOS]), ("tokens", None)],
)
def test_control_tokens_in_a_row_are_letters_unless_asked_for(
    tokenizer: BundleTokenizer, control_tokens: Any, answer: list[int] | None
) -> None:
    prompts = completions(tokenizer, control_tokens=control_tokens)
    row = record(prompt="Price?", completion=" was <s>20</s> now")
    if answer is None:
        with pytest.raises(DataError, match="line 3: the answer holds, as text, the token that begins"):
            prompts.examples([row])
    else:
        assert prompts.examples([row])[0].candidates == (tuple(answer),)


def test_an_end_behind_a_completion_is_the_end(tokenizer: BundleTokenizer) -> None:
    plain, ended = completions(tokenizer).examples(
        [record(prompt="q", completion=" a"), record(prompt="q", completion=" a</s>\n")]
    )
    assert plain.candidates == ended.candidates == ((*byte_ids(" a"), EOS),)


@pytest.mark.parametrize(
    ("prompts_of", "fields", "control"),
    [
        (chats, {"messages": [{"role": "user", "content": "</s>"}, {"role": "assistant", "content": "x"}]}, [BOS, EOS]),
        (labels, {"text": "a</s>b", "label": "a"}, [BOS]),
        (completions, {"prompt": "<s>a</s><s>", "completion": "b"}, [BOS]),
    ],
)
def test_a_prompts_control_tokens_are_the_templates_alone(
    tokenizer: BundleTokenizer, prompts_of: Any, fields: dict[str, Any], control: list[int]
) -> None:
    (example,) = prompts_of(tokenizer).examples([record(**fields)])
    assert [token for token in example.prompt if token in (BOS, EOS)] == control
    assert f"{byte_ids('</s>')}"[1:-1] in str(example.prompt)


def test_a_template_of_ones_own_may_write_control_tokens(tokenizer: BundleTokenizer) -> None:
    (example,) = labels(tokenizer, "{text}</s>{label}").examples([record(text="x</s>", label="a")])
    assert example.prompt == (BOS, *byte_ids("x</s>"), EOS)


def test_rows_that_spell_control_tokens_are_counted(tokenizer: BundleTokenizer) -> None:
    rows = [record(prompt="<s>a", completion="b</s>"), record(prompt="a</s>", completion="b"), record(prompt="a")]
    assert count_spelling_rows(rows, tokenizer) == 1


@pytest.mark.parametrize("renderer", ["completion", "messages", "labelled"])
def test_a_configuration_gives_the_same_prompts_again(tokenizer: BundleTokenizer, renderer: str) -> None:
    makers = {"completion": completions, "messages": chats, "labelled": labels}
    before = makers[renderer](tokenizer)
    again = prompts_of_run(json.loads(json.dumps(before.as_config())), tokenizer)
    assert again == before
    assert again.question("x </s>") == before.question("x </s>")


def test_an_older_runs_configuration_reads_control_tokens_as_tokens(tokenizer: BundleTokenizer) -> None:
    older = prompts_of_run({"rendering": {}, "max_tokens": 32}, tokenizer)
    assert (older.control_tokens, older.max_tokens, older.renderer.kind) == ("tokens", 32, "completion")


def test_only_conversations_have_a_system_and_messages(tokenizer: BundleTokenizer) -> None:
    with pytest.raises(InvalidRequest, match="--system with prompts that are completion rows"):
        completions(tokenizer).question("x", system="S")
    with pytest.raises(InvalidRequest, match="messages for prompts that are labelled rows"):
        labels(tokenizer).conversation({"messages": [USER]})


def test_every_renderer_tells_its_kind(tokenizer: BundleTokenizer) -> None:
    renderers: list[RowRenderer] = [
        UserRowRenderer(tokenizer, None), UserRowRenderer(tokenizer, None, "messages"), NamedTaskRenderer("CB", "opt"),
    ]  # fmt: skip
    assert [renderer.kind for renderer in renderers] == ["completion", "messages", "task"]
