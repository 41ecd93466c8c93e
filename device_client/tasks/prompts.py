"""The one way from rows and questions to tokens: ``data check``, ``tune``, ``eval`` and ``generate`` all go through it.

    row       → marked text → renderer → prompt and answers → tokens, cut to the longest sequence        ``examples``
    row whose answer is judged → prompt, and the answer where there is one                               ``judged``
    question  → marked text → renderer → prompt             → tokens, cut in the same way                ``question``

What decides the tokens (the renderer, the longest sequence, how spelt control tokens are read) is kept in a run's
configuration; so a run is measured and asked with exactly the prompts that it was tuned on. Costs what rendering and
encoding cost. Knows nothing about files or models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from shared.errors import DataError, InvalidRequest
from shared.tasks.conversations import ChatRenderer
from shared.tasks.datasets import Record
from shared.tasks.examples import Example, TextEncoder, after_bos, encode_rows
from shared.tasks.rendering import RowRenderer, renderer_from_json
from shared.tasks.templates import row_kind

ControlTokens = Literal["text", "tokens"]
"""What a control token is that a row spells: its letters, or the token."""


class Tokenizer(TextEncoder, ChatRenderer, Protocol):
    """Encodes text and renders conversations."""

    def as_text(self, text: str) -> str:
        """Return a person's text so marked that ``encode`` gives no control token for what it spells."""

    def text_of(self, token: int) -> str | None:
        """Return how a token is written, or None where there is no such token."""


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt to continue, in tokens.

    Attributes:
        ids: At least one.
        lost_tokens: How many ids the prompt lost at its beginning.
    """

    ids: list[int]
    lost_tokens: int


@dataclass(frozen=True, slots=True)
class Prompts:
    """How the rows and the questions of one run become tokens.

    Attributes:
        tokenizer: The model's.
        renderer: Makes prompts of rows.
        max_tokens: Longest sequence; None means the model's context.
        control_tokens: What spelt control tokens are.
    """

    tokenizer: Tokenizer
    renderer: RowRenderer
    max_tokens: int | None = None
    control_tokens: ControlTokens = "text"

    def examples(self, records: Sequence[Record]) -> list[Example]:
        """Return rows in tokens, in order; a conversation gives one example for each answer.

        Raises:
            DataError: A row is unusable.
        """
        if not records:
            return []
        marked = mark_control_tokens(records, self.tokenizer, self.control_tokens)
        return encode_rows(self.renderer.render(marked), self.tokenizer, max_tokens=self.max_tokens)

    def judged(self, records: Sequence[Record], answer_tokens: int) -> list[Example]:
        """Return rows in tokens, in order, with their fields; a row without an answer is a prompt alone.

        Args:
            records: Rows whose answers are judged by something that may want their fields.
            answer_tokens: Room that is left behind the prompt of a row without an answer.

        Raises:
            DataError: A row is unusable, or of another kind than the others.
        """
        examples: list[Example] = []
        for record in records:
            if self.renderer.kind != "task" and row_kind(record) != self.renderer.kind:
                raise DataError(
                    f"{record.place}: a {row_kind(record)} row among {self.renderer.kind} rows",
                    needed="rows of one kind",
                )
            if self.renderer.has_answer(record):
                found = self.examples([record])
            else:
                asked = self._asked(record, answer_tokens)
                found = [Example(tuple(asked.ids), (), 0, record.place, asked.lost_tokens)]
            examples += [replace(example, row=record.fields) for example in found]
        return examples

    def question(self, text: str, *, system: str | None = None) -> Question:
        """Return a person's text in tokens, asked as the rows of this kind ask.

        Args:
            text: A prompt, the text of a labelled row, what a user says, or the fields of a named task's row as JSON.
            system: What the system says before; conversations only.

        Raises:
            InvalidRequest: There is no conversation that a system could begin, or a named task's row is not JSON.
            DataError: The text is blank, or the model's template does not render it.
        """
        if self.renderer.kind == "messages":
            before = [] if system is None else [{"role": "system", "content": system}]
            return self.conversation({"messages": [*before, {"role": "user", "content": text}]})
        if system is not None:
            raise InvalidRequest(
                f"--system with prompts that are {self.renderer.kind} rows",
                needed="a run that was tuned on conversations",
                next_step="leave --system out, or write it into the prompt",
            )
        return self._asked(self.renderer.question_of(text, "the prompt"))

    def conversation(self, fields: Mapping[str, Any]) -> Question:
        """Return a conversation in tokens, up to where the assistant's answer begins.

        Args:
            fields: ``messages``, and ``tools`` where there are some.

        Raises:
            InvalidRequest: The rows of this run are not conversations.
            DataError: The messages are malformed, or the model's template does not render them.
        """
        if self.renderer.kind != "messages":
            raise InvalidRequest(
                f"messages for prompts that are {self.renderer.kind} rows",
                needed="a run that was tuned on conversations",
                next_step="give the prompt as text",
            )
        return self._asked(Record(dict(fields), "the messages"))

    def _asked(self, record: Record, answer_tokens: int = 1) -> Question:
        (marked,) = mark_control_tokens([record], self.tokenizer, self.control_tokens)
        bos = self.tokenizer.bos_ids
        ids = after_bos(self.tokenizer.encode(self.renderer.question(marked)), bos)
        context = self.tokenizer.context_length
        room = min(self.max_tokens or context, context) - len(bos) - answer_tokens
        lost = max(0, len(ids) - max(1, room))
        return Question(bos + ids[lost:], lost)

    def as_config(self) -> dict[str, Any]:
        """Return what ``prompts_of_run`` needs to make it again."""
        return {
            "rendering": self.renderer.as_json(),
            "max_tokens": self.max_tokens,
            "control_tokens": self.control_tokens,
        }


def prompts_of_run(config: Mapping[str, Any], tokenizer: Tokenizer) -> Prompts:
    """Return the prompts that a run was tuned on.

    Args:
        config: The run's, with what ``as_config`` returned; runs of older versions read control tokens as tokens.
        tokenizer: Of the run's bundle.
    """
    renderer = renderer_from_json(config["rendering"], tokenizer)
    return Prompts(tokenizer, renderer, config["max_tokens"], config.get("control_tokens", "tokens"))


def mark_control_tokens(
    records: Sequence[Record], tokenizer: Tokenizer, control_tokens: ControlTokens
) -> Sequence[Record]:
    """Return rows in whose texts spelt control tokens are marked as text, where they are to be text.

    The beginning-of-text token before a prompt, and an end-of-text token behind a completion, stay tokens: that is how
    such rows are written for Llama 2 and Mistral, and neither says anything else.
    """
    if control_tokens == "tokens":
        return records
    return [Record(_marked_fields(record, tokenizer), record.place) for record in records]


def count_spelling_rows(records: Sequence[Record], tokenizer: Tokenizer) -> int:
    """Return how many rows spell control tokens that are read as text."""
    marked = mark_control_tokens(records, tokenizer, "text")
    return sum(one.fields != other.fields for one, other in zip(records, marked, strict=True))


def _marked_fields(record: Record, tokenizer: Tokenizer) -> dict[str, Any]:
    fields = {key: _marked(value, tokenizer) for key, value in record.fields.items()}
    prompt, completion = record.fields.get("prompt"), record.fields.get("completion")
    begin = next((text for text in map(tokenizer.text_of, tokenizer.bos_ids) if text), None)
    if isinstance(prompt, str) and begin and prompt.startswith(begin):
        fields["prompt"] = begin + tokenizer.as_text(prompt.removeprefix(begin))
    ends = [text for text in map(tokenizer.text_of, tokenizer.eos_ids) if text]
    if isinstance(completion, str):
        stripped = completion.rstrip()
        end = next((text for text in ends if stripped.endswith(text)), "")
        fields["completion"] = tokenizer.as_text(stripped.removesuffix(end)) + end if end else fields["completion"]
    return fields


def _marked(value: Any, tokenizer: Tokenizer) -> Any:
    if isinstance(value, str):
        return tokenizer.as_text(value)
    if isinstance(value, list):
        return [_marked(item, tokenizer) for item in value]
    if isinstance(value, dict):
        return {key: _marked(item, tokenizer) for key, item in value.items()}
    return value
