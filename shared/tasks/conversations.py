"""Conversations as rows: each of the assistant's turns is an answer to what was said before it.

    {"messages": [{"role", "content", …}, …], "tools": […]}      tools and other fields as the OpenAI interface has them

Content may be text, a list of text parts, or null beside tool calls. Messages and tools go to the model's chat template
whole. What the template leaves out is refused by name: a model that never sees a tool call would learn to answer
without. Every error names the file, the line and the message. Costs two renderings for each turn, one more where there
are tools or tool calls. Knows nothing about tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from shared.errors import DataError, UnsupportedModel
from shared.tasks.datasets import Record
from shared.tasks.prompted_row import PromptedRow

Message = Mapping[str, Any]
Tool = Mapping[str, Any]


class ChatRenderer(Protocol):
    """Renders a conversation as text."""

    def apply_chat_template(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = True, tools: Sequence[Tool] | None = None
    ) -> str:
        """Return the conversation as text, ending where the answer begins if asked."""


def render_conversation(record: Record, chat: ChatRenderer) -> list[PromptedRow]:
    """Return one row per assistant turn: the conversation before it, and the turn.

    Raises:
        DataError: The messages are malformed, none is the assistant's, or the model's template does not render them.
    """
    messages, tools = _messages(record), _tools(record)
    _check_template_writes(record, chat, messages, tools)
    rows = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        with _placed(record, index):
            prompt = chat.apply_chat_template(messages[:index], add_generation_prompt=True, tools=tools)
            whole = chat.apply_chat_template(messages[: index + 1], add_generation_prompt=False, tools=tools)
        # A template may rewrite earlier turns; then the turn's own text follows the prompt it will be asked with.
        answer = whole[len(prompt) :] if whole.startswith(prompt) else message["content"]
        rows.append(PromptedRow(prompt, (answer,), 0, record.place, ends_text=True))
    if not rows:
        raise DataError(f"{record.place}: no message of the role 'assistant'", needed="an answer to learn")
    return rows


@contextmanager
def _placed(record: Record, index: int) -> Iterator[None]:
    """Name the row and the message in what a template refuses or fails at: it renders other conversations."""
    try:
        yield
    except (DataError, UnsupportedModel) as error:
        raise DataError(
            f"{record.place}, message {index + 1}: {error.found}",
            needed="messages in an order and of roles that the model's chat template renders",
            next_step="change or remove that line",
        ) from error


def _check_template_writes(
    record: Record, chat: ChatRenderer, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None
) -> None:
    """Refuse tools and tool calls that change nothing in the text."""
    last = len(messages) - 1
    for index, message in enumerate(messages):
        if message.get("tool_calls"):
            bare = {key: value for key, value in message.items() if key != "tool_calls"}
            with _placed(record, index):
                with_calls = chat.apply_chat_template(messages[: index + 1], add_generation_prompt=False, tools=tools)
                without = chat.apply_chat_template([*messages[:index], bare], add_generation_prompt=False, tools=tools)
            if with_calls == without:
                raise _unwritten(
                    f"{record.place}, message {index + 1}: the model's chat template leaves out tool_calls"
                )
    if tools:
        with _placed(record, last):
            with_tools = chat.apply_chat_template(messages, add_generation_prompt=False, tools=tools)
            without = chat.apply_chat_template(messages, add_generation_prompt=False)
        if with_tools == without:
            raise _unwritten(f"{record.place}: the model's chat template leaves out tools")


def _unwritten(found: str) -> DataError:
    return DataError(
        found,
        needed="a model whose template writes tools and tool calls",
        next_step="take such a model, or write the calls into the messages as text",
    )


def _messages(record: Record) -> list[dict[str, Any]]:
    messages: Any = record.field("messages")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise DataError(f"{record.place}: 'messages' is not a list of objects", needed='[{"role", "content"}, …]')
    return [_message(message, f"{record.place}, message {number}") for number, message in enumerate(messages, start=1)]


def _message(message: dict[str, Any], place: str) -> dict[str, Any]:
    if not isinstance(message.get("role"), str):
        raise DataError(f"{place}: it has no 'role'", needed="user, assistant, system or tool")
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(_text_of_part(part, place) for part in content)
    if content is None and message.get("tool_calls"):
        content = ""
    if not isinstance(content, str):
        raise DataError(f"{place}: it has no 'content'", needed="text, or a list of text parts")
    return message | {"content": content}


def _text_of_part(part: object, place: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    text = part.get("text") if isinstance(part, dict) and kind == "text" else None
    if not isinstance(text, str):
        raise DataError(
            f"{place}: a part of its content is of the type {str(kind)[:40]!r}",
            needed='{"type": "text", "text": …}: this model reads text alone',
            next_step="remove that part or that line",
        )
    return text


def _tools(record: Record) -> list[dict[str, Any]] | None:
    tools = record.fields.get("tools")
    if tools is None:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise DataError(f"{record.place}: 'tools' is not a list of objects", needed="JSON schemas of functions")
    return tools
