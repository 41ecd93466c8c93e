"""Conversations as rows: each of the assistant's turns is an answer to what was said before it.

    {"messages": [{"role", "content", …}, …], "tools": […]}      tools and other fields as the OpenAI interface has them
    {"prompt": [messages], "completion": [messages]}             the turns of the completion alone are learnt

Content may be text, a list of text parts, or null beside tool calls. Messages and tools go to the model's chat template
whole. What the template leaves out is refused by name: a model that never sees a tool call, or a field that means
something, would learn to answer without. Empty fields count as absent, and ``tool_call_id``, like the name of a tool's
message, only repeats what the call says. Some fields are for the trainer and not for the template:

    weight (OpenAI, Mistral) · train, training, train_on_turn (axolotl) · loss (ms-swift) · trainable      0 or false
    masked (torchtune)                                                                                     1 or true

An assistant's turn marked so is context and no answer. Every error names the file, the line and the message. Costs two
renderings for each turn that is learnt, and two for each field that is checked. Knows nothing about tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
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


_LEARNT_WHERE = {
    "weight": True,
    "train": True,
    "training": True,
    "train_on_turn": True,
    "loss": True,
    "trainable": True,
    "masked": False,
}
"""Field for the trainer → which truth of it says that the turn is learnt."""

_ROLE_AND_CONTENT = frozenset({"role", "content"})
_UNKNOWN_BESIDE_MESSAGES = ("functions", "function_call", "documents", "chat_template_kwargs")
_TEXT_PARTS = frozenset({"text", "input_text", "output_text"})
_EMPTY: tuple[object, ...] = (None, "", [], {})


@dataclass(frozen=True, slots=True)
class _Turn:
    """A message as the template receives it, and whether it is an answer to learn."""

    message: dict[str, Any]
    is_learnt: bool


def render_conversation(record: Record, chat: ChatRenderer) -> list[PromptedRow]:
    """Return one row per assistant turn that is to be learnt: the conversation before it, and the turn.

    Raises:
        DataError: The messages are malformed, no turn is to be learnt, or the model's template does not render them.
    """
    turns, tools = _turns(record), _tools(record)
    messages = [turn.message for turn in turns]
    _check_template_writes(record, chat, messages, tools)
    rows = []
    for index, turn in enumerate(turns):
        if not turn.is_learnt:
            continue
        place = f"{record.place}, message {index + 1}"
        if not turn.message["content"].strip() and turn.message.keys() <= _ROLE_AND_CONTENT:
            raise DataError(f"{place}: an answer without text", needed="an answer to learn")
        with _placed(record, index):
            prompt = chat.apply_chat_template(messages[:index], add_generation_prompt=True, tools=tools)
            whole = chat.apply_chat_template(messages[: index + 1], add_generation_prompt=False, tools=tools)
        if not whole.startswith(prompt) and not turn.message.keys() <= _ROLE_AND_CONTENT:
            raise DataError(
                f"{place}: the model's chat template writes what was said before in another way than it asks for "
                "an answer, so what it writes of the turn's other fields cannot be told apart",
                needed="a turn of text alone",
                next_step="change or remove that line, or take another model",
            )
        # A template may rewrite earlier turns; then the turn's own text follows the prompt it will be asked with.
        answer = whole[len(prompt) :] if whole.startswith(prompt) else turn.message["content"]
        rows.append(PromptedRow(prompt, (answer,), 0, record.place, ends_text=True))
    if not rows:
        has_answer = any(message["role"] == "assistant" for message in messages)
        fault = "every answer is marked as not to be learnt" if has_answer else "no message of the role 'assistant'"
        raise DataError(
            f"{record.place}: {fault}",
            needed="an answer to learn",
            next_step="end the conversation with the assistant's answer, or remove that line",
        )
    return rows


def conversation_prompt(record: Record, chat: ChatRenderer) -> str:
    """Return the conversation up to where the assistant's answer begins.

    Raises:
        DataError: The messages are malformed, the last is the assistant's, or the model's template does not render
            them.
    """
    turns, tools = _turns(record, is_question=True), _tools(record)
    messages = [turn.message for turn in turns]
    if not messages or messages[-1]["role"] == "assistant":
        raise DataError(
            f"{record.place}: " + ("the last is the assistant's" if messages else "there are none"),
            needed="a conversation that asks for an answer",
            next_step="end it with a message of the user",
        )
    _check_template_writes(record, chat, messages, tools)
    with _placed(record, len(messages) - 1):
        return chat.apply_chat_template(messages, add_generation_prompt=True, tools=tools)


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
    """Refuse tools and fields of messages that change nothing in the text."""
    for index, message in enumerate(messages):
        for key in message.keys() - _ROLE_AND_CONTENT - _repeated_keys(message):
            bare = {name: value for name, value in message.items() if name != key}
            with _placed(record, index):
                having = chat.apply_chat_template(messages[: index + 1], add_generation_prompt=False, tools=tools)
            if having == _rendered_anyway(chat, [*messages[:index], bare], tools):
                raise _unwritten(f"{record.place}, message {index + 1}: the model's chat template leaves out {key}")
    if tools:
        with _placed(record, len(messages) - 1):
            having = chat.apply_chat_template(messages, add_generation_prompt=False, tools=tools)
        if having == _rendered_anyway(chat, messages, None):
            raise _unwritten(f"{record.place}: the model's chat template leaves out tools")


def _rendered_anyway(
    chat: ChatRenderer, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None
) -> str | None:
    """Return the text, or None where the template refuses: then it reads what is missing here."""
    try:
        return chat.apply_chat_template(messages, add_generation_prompt=False, tools=tools)
    except (DataError, UnsupportedModel):
        return None


def _repeated_keys(message: Mapping[str, Any]) -> set[str]:
    return {"tool_call_id", "name"} if message["role"] == "tool" else set()


def _unwritten(found: str) -> DataError:
    return DataError(
        found,
        needed="a model whose template writes it: what is left out cannot be learnt",
        next_step="take such a model, write it into the content as text, or remove that field",
    )


def _turns(record: Record, *, is_question: bool = False) -> list[_Turn]:
    for key in _UNKNOWN_BESIDE_MESSAGES:
        if record.fields.get(key) not in _EMPTY:
            raise DataError(
                f"{record.place}: {key!r} beside messages is not read",
                needed="messages and tools",
                next_step="write functions as tools, or remove that field",
            )
    if "messages" in record.fields:
        return _turns_of(record, "messages", record.place)
    before = [replace(turn, is_learnt=False) for turn in _turns_of(record, "prompt", f"{record.place}, prompt")]
    return before if is_question else before + _turns_of(record, "completion", f"{record.place}, completion")


def _turns_of(record: Record, name: str, place: str) -> list[_Turn]:
    messages: Any = record.field(name)
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise DataError(f"{record.place}: {name!r} is not a list of objects", needed='[{"role", "content"}, …]')
    return [_turn(message, f"{place}, message {number}") for number, message in enumerate(messages, start=1)]


def _turn(message: dict[str, Any], place: str) -> _Turn:
    if not isinstance(message.get("role"), str):
        raise DataError(f"{place}: it has no 'role'", needed="user, assistant, system or tool")
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(_text_of_part(part, place) for part in content)
    others = {
        key: value
        for key, value in message.items()
        if key not in _ROLE_AND_CONTENT and key not in _LEARNT_WHERE and value not in _EMPTY
    }
    if content is None and others.keys() - {"name"}:
        content = ""
    if not isinstance(content, str):
        raise DataError(f"{place}: it has no 'content'", needed="text, or a list of text parts")
    return _Turn({"role": message["role"], "content": content} | others, _is_learnt(message, place))


def _is_learnt(message: Mapping[str, Any], place: str) -> bool:
    is_assistant = message["role"] == "assistant"
    said: dict[str, bool] = {}
    for key in message.keys() & _LEARNT_WHERE.keys():
        value = message[key]
        if value is None:
            continue
        if not isinstance(value, (bool, int, float)) or value not in (0, 1):
            raise DataError(f"{place}: {key!r} is neither 0 nor 1", needed="0 or false, 1 or true: to learn it or not")
        said[key] = bool(value) == _LEARNT_WHERE[key]
    if len(set(said.values())) > 1:
        raise DataError(f"{place}: {' and '.join(sorted(said))} contradict each other", needed="one of them")
    # ``masked: false`` is what torchtune writes into messages of every role.
    asking = sorted(key for key, is_learnt in said.items() if is_learnt and _LEARNT_WHERE[key])
    if asking and not is_assistant:
        raise DataError(
            f"{place}: {asking[0]!r} asks to learn a message of the role {message['role'][:40]!r}",
            needed="answers of the assistant: nothing else is learnt",
            next_step="remove that field",
        )
    return is_assistant and all(said.values())


def _text_of_part(part: object, place: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    text = part.get("text") if isinstance(part, dict) and kind in _TEXT_PARTS else None
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
