"""What a chat template writes between the messages of a conversation, found by having it write conversations.

    [first] U [answer] A [again] U [answer] A … U [ask]             without a system message
    [system] S [after_system] U [answer] A [again] U … [ask]        with one

The template is a program; what it writes between marks is taken for what it always writes there. That is then compared
with what it writes for other conversations: a template that does not fit (another text for the third turn, a mark that
it changes, roles that it counts) is refused. No family is known by name. Costs a handful of renderings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from shared.errors import DataError, UnsupportedModel

Messages = Sequence[Mapping[str, str]]
Render = Callable[[Messages], str]
"""A conversation that ends with the user's turn, up to where the answer begins."""

_MARKS = ("\ue000first\ue001", "\ue000second\ue001", "\ue000third\ue001", "\ue000fourth\ue001", "\ue000fifth\ue001")
_SYSTEM_MARK = "\ue000system\ue001"


@dataclass(frozen=True, slots=True)
class TemplatePieces:
    """The texts between messages.

    Attributes:
        first: Before the first user's turn, where there is no system message.
        answer: Between a user's turn and the answer to it, where the answer is known.
        again: Between an answer and the next user's turn.
        ask: Behind the last user's turn: the model continues from there.
        system: Before the system's message; None where the template takes none.
        after_system: Between the system's message and the first user's turn.
    """

    first: str
    answer: str
    again: str
    ask: str
    system: str | None = None
    after_system: str = ""

    def write(self, messages: Messages) -> str:
        """Return a conversation of alternating turns that ends with the user's."""
        text, before = "", ""
        for message in messages:
            role = message["role"]
            if role == "system":
                text += self.system or ""
            elif role == "assistant":
                text += self.answer
            else:
                text += {"": self.first, "system": self.after_system, "assistant": self.again}[before]
            text, before = text + message["content"], role
        return text + self.ask


def template_pieces(render: Render) -> TemplatePieces:
    """Return the pieces of a template.

    Args:
        render: Writes a conversation; raises DataError where the template refuses it.

    Raises:
        UnsupportedModel: What it writes is not such pieces.
    """
    pieces = _with_system(render, _without_system(render))
    for messages in _conversations(has_system=pieces.system is not None):
        if pieces.write(messages) != render(messages):
            raise _refusal(f"writes another text in a conversation of {len(messages)} messages")
    return pieces


def _without_system(render: Render) -> TemplatePieces:
    first, answer, again, ask = _between(render(_alternating(_MARKS[:3])), _MARKS[:3])
    return TemplatePieces(first, answer, again, ask)


def _with_system(render: Render, pieces: TemplatePieces) -> TemplatePieces:
    marks = (_SYSTEM_MARK, *_MARKS[:3])
    messages = [{"role": "system", "content": _SYSTEM_MARK}, *_alternating(_MARKS[:3])]
    try:
        text = render(messages)
    except DataError:  # some families have no system message, and say so
        return pieces
    if _SYSTEM_MARK not in text:
        return pieces
    system, after_system, *others = _between(text, marks)
    if others != [pieces.answer, pieces.again, pieces.ask]:
        raise _refusal("writes other turns behind a system message")
    return TemplatePieces(pieces.first, pieces.answer, pieces.again, pieces.ask, system, after_system)


def _between(text: str, marks: Sequence[str]) -> list[str]:
    pieces = []
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found:
            raise _refusal("does not write every message, or changes its text or place")
        pieces.append(before)
    if any(mark in text for mark in marks):
        raise _refusal("writes a message twice")
    return [*pieces, text]


def _alternating(contents: Sequence[str]) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[number % 2], "content": content} for number, content in enumerate(contents)]


def _conversations(*, has_system: bool) -> list[list[dict[str, str]]]:
    """Return conversations that were not looked at for the pieces."""
    texts = ["How are you?", "Well.\n\nAnd you?", "Fine: 1, 2, 3.", "Good.", "What is {{ 1 }} <b>?"]
    found = [_alternating(texts[:count]) for count in (1, 3, 5)]
    if has_system:
        found += [[{"role": "system", "content": "Be brief.\nBe kind."}, *messages] for messages in found]
    return found


def _refusal(found: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"the bundle's chat template {found}",
        needed="a template whose text between two messages is always the same, as Ollama's are",
        next_step="export it with --to gguf, which keeps the template as it is",
        param="to",
    )
