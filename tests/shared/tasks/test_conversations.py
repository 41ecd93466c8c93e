"""Conversations as rows: whole messages and tools for the template, and every refusal by line and message."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from plain_chat import PlainChat
from tiny_bundle import byte_tokenizer_json

from shared.bundle.config import TokenizerSettings
from shared.errors import DataError
from shared.model.tokenizer import BundleTokenizer
from shared.tasks.conversations import conversation_prompt, render_conversation
from shared.tasks.datasets import Record

USER, ANSWER = {"role": "user", "content": "weather?"}, {"role": "assistant", "content": "sunny"}
CALL = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "1", "content": "18 degrees"}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {}}}
LLAMA_3 = "{% if messages[0].role == 'system' %}S{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}"
ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ m.content }}{% endfor %}"
)


class ForgetfulChat(PlainChat):
    """Rewrites earlier turns, as templates do that drop an assistant's reasoning."""

    def apply_chat_template(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
        return f"<{len(messages)}>" + super().apply_chat_template(messages, **options)


class ToolChat(PlainChat):
    """Writes tools and tool calls as JSON."""

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        written = [message | {"content": message["content"] + calls_of(message)} for message in messages]
        text = super().apply_chat_template(written, add_generation_prompt=add_generation_prompt)
        return (json.dumps(tools) if tools else "") + text


def calls_of(message: Mapping[str, Any]) -> str:
    return ",".join(f"{call['function']['name']}()" for call in message.get("tool_calls", ()))


def record(*messages: object, **fields: Any) -> Record:
    return Record({"messages": list(messages)} | fields, "rows.jsonl line 7")


def chat_of(template: str) -> BundleTokenizer:
    settings = TokenizerSettings(prepend_bos=False, context_length=64, chat_template=template)
    return BundleTokenizer(byte_tokenizer_json(), settings)


def test_every_assistant_turn_is_learned_with_what_was_said_before_it() -> None:
    rows = render_conversation(record(USER, ANSWER, USER, ANSWER), PlainChat())
    assert [(row.prompt, row.answers, row.ends_text) for row in rows] == [
        ("user|weather?;assistant|", ("sunny;",), True),
        ("user|weather?;assistant|sunny;user|weather?;assistant|", ("sunny;",), True),
    ]


def test_a_template_that_rewrites_the_past_is_answered_by_the_turns_own_text() -> None:
    assert render_conversation(record(USER, ANSWER), ForgetfulChat())[0].answers == ("sunny",)


def test_tools_and_tool_calls_reach_the_template_whole() -> None:
    first, second = render_conversation(record(USER, CALLING, RESULT, ANSWER, tools=[TOOL]), ToolChat())
    schema = json.dumps([TOOL])
    assert (first.prompt, first.answers) == (f"{schema}user|weather?;assistant|", ("look();",))
    assert second.prompt == f"{schema}user|weather?;assistant|look();tool|18 degrees;assistant|"


def test_what_a_template_leaves_out_is_refused_by_name() -> None:
    with pytest.raises(DataError, match="line 7, message 2: the model's chat template leaves out tool_calls"):
        render_conversation(record(USER, CALLING, RESULT, ANSWER), PlainChat())
    with pytest.raises(DataError, match="line 7: the model's chat template leaves out tools"):
        render_conversation(record(USER, ANSWER, tools=[TOOL]), PlainChat())
    assert render_conversation(record(USER, ANSWER, tools=[]), PlainChat())


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "wea"}, {"type": "text", "text": "ther?"}]
    (row,) = render_conversation(record({"role": "user", "content": parts}, ANSWER), PlainChat())
    assert row.prompt == "user|weather?;assistant|"


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("text", "line 7: 'messages' is not a list of objects"),
        ([1], "line 7: 'messages' is not a list of objects"),
        ([USER, {"content": "a"}], "line 7, message 2: it has no 'role'"),
        ([{"role": "user"}], "line 7, message 1: it has no 'content'"),
        ([{"role": "assistant", "content": 3}], "line 7, message 1: it has no 'content'"),
        ([{"role": "assistant", "content": None}], "line 7, message 1: it has no 'content'"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "message 1: a part of its content is .* 'image_url'"),
        ([{"role": "user", "content": ["a"]}], "message 1: a part of its content is of the type 'str'"),
        ([USER], "line 7: no message of the role 'assistant'"),
    ],
)
def test_malformed_messages_name_line_and_message(messages: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        render_conversation(Record({"messages": messages}, "rows.jsonl line 7"), PlainChat())


@pytest.mark.parametrize("tools", ["look", [1]])
def test_malformed_tools_name_the_line(tools: object) -> None:
    with pytest.raises(DataError, match="line 7: 'tools' is not a list of objects"):
        render_conversation(record(USER, ANSWER, tools=tools), PlainChat())


@pytest.mark.parametrize(
    ("template", "messages", "message"),
    [
        (LLAMA_3, [ANSWER, USER, ANSWER], r"line 7, message 1: .*list object has no element 0"),
        (ALTERNATING, [ANSWER, USER, ANSWER], r"line 7, message 1: .*roles must alternate"),
        (ALTERNATING, [USER, ANSWER, ANSWER], r"line 7, message 3: .*roles must alternate"),
    ],
)
def test_what_a_template_cannot_render_is_refused_by_line_and_message(
    template: str, messages: list[object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        render_conversation(record(*messages), chat_of(template))


def test_a_template_that_reads_a_field_receives_it() -> None:
    chat = chat_of("{% for m in messages %}{{ m.name }}:{{ m.content }};{% endfor %}")
    (row,) = render_conversation(record(USER | {"name": "Ann"}, ANSWER | {"name": "Bot"}), chat)
    assert (row.prompt, row.answers) == ("Ann:weather?;", ("Bot:sunny;",))


@pytest.mark.parametrize("key", ["name", "reasoning_content", "function_call", "train_detail", "mood"])
def test_a_field_that_the_template_leaves_out_is_refused_by_name(key: str) -> None:
    with pytest.raises(DataError, match=f"line 7, message 2: the model's chat template leaves out {key}"):
        render_conversation(record(USER, ANSWER | {key: "x"}), PlainChat())


def test_empty_fields_and_what_a_call_says_already_are_no_loss() -> None:
    answer = ANSWER | {"refusal": None, "annotations": [], "tool_calls": None, "name": ""}
    result = {"role": "tool", "tool_call_id": "1", "name": "look", "content": "18"}
    assert len(render_conversation(record(USER, answer, result, ANSWER), PlainChat())) == 2


@pytest.mark.parametrize("key", ["functions", "documents", "chat_template_kwargs"])
def test_what_is_not_read_beside_messages_is_refused_by_name(key: str) -> None:
    with pytest.raises(DataError, match=f"line 7: '{key}' beside messages is not read"):
        render_conversation(record(USER, ANSWER, **{key: [{"name": "look"}]}), PlainChat())


@pytest.mark.parametrize(
    ("key", "skipping", "learning"),
    [
        ("weight", 0, 1),
        ("weight", 0.0, 1.0),
        ("train", False, True),
        ("training", False, True),
        ("train_on_turn", False, True),
        ("loss", False, True),
        ("trainable", False, True),
        ("masked", True, False),
    ],
)
def test_a_turn_that_is_marked_as_not_to_be_learnt_is_context(key: str, skipping: object, learning: object) -> None:
    rows = render_conversation(record(USER, ANSWER | {key: skipping}, USER, ANSWER | {key: learning}), PlainChat())
    assert [row.prompt for row in rows] == ["user|weather?;assistant|sunny;user|weather?;assistant|"]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([USER, ANSWER | {"weight": 0}], "line 7: every answer is marked as not to be learnt"),
        ([USER, ANSWER | {"weight": 0.5}], "message 2: 'weight' is neither 0 nor 1"),
        ([USER, ANSWER | {"train": "false"}], "message 2: 'train' is neither 0 nor 1"),
        ([USER, ANSWER | {"train": True, "masked": True}], "message 2: masked and train contradict each other"),
        ([USER | {"train": True}, ANSWER], "message 1: 'train' asks to learn a message of the role 'user'"),
        ([USER, ANSWER | {"content": " \n"}], "message 2: an answer without text"),
    ],
)
def test_what_cannot_be_learnt_as_asked_is_refused(messages: list[object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        render_conversation(record(*messages), PlainChat())


def test_an_empty_answer_may_be_context() -> None:
    rows = render_conversation(
        record(USER, {"role": "assistant", "content": "", "weight": 0}, USER, ANSWER), PlainChat()
    )
    assert len(rows) == 1


def test_a_users_mask_of_torchtune_says_nothing_new() -> None:
    assert len(render_conversation(record(USER | {"masked": False}, ANSWER), PlainChat())) == 1


def test_of_a_prompt_and_a_completion_in_messages_the_completion_is_learnt() -> None:
    fields = {"prompt": [USER, ANSWER, USER], "completion": [ANSWER]}
    (row,) = render_conversation(Record(fields, "rows.jsonl line 7"), PlainChat())
    assert row.prompt == "user|weather?;assistant|sunny;user|weather?;assistant|"


def test_a_question_is_asked_up_to_where_the_answer_begins() -> None:
    assert conversation_prompt(record(USER), PlainChat()) == "user|weather?;assistant|"
    with pytest.raises(DataError, match="the last is the assistant's"):
        conversation_prompt(record(USER, ANSWER), PlainChat())
