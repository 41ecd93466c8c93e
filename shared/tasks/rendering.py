"""What turns the rows of one run into prompts, in a form that a run's configuration can keep.

    {"task": "SST-2", "prompt_style": "opt"}                           a named task
    {"template": "{text} It was {label}", "label_words": {…}}          labelled rows
    {}                                                                 completions
    {"rows": "messages"}                                               conversations

So rows that come later are rendered exactly as the training rows were, and so are questions: prompts whose answer
nobody knows yet. Knows nothing about files or tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from shared.errors import InvalidRequest
from shared.strict_json import parse_json
from shared.tasks.conversations import ChatRenderer, conversation_prompt
from shared.tasks.datasets import Record
from shared.tasks.named_tasks import PromptStyle, named_task
from shared.tasks.prompted_row import PromptedRow
from shared.tasks.templates import LabelTemplate, RowKind, completion_prompt, has_answer, render_rows


class RowRenderer(Protocol):
    """Renders the rows of one run."""

    @property
    def kind(self) -> RowKind | Literal["task"]:
        """What its rows are."""

    def question_of(self, text: str, place: str) -> Record:
        """Return a row without an answer, of a person's text."""

    def question(self, record: Record) -> str:
        """Return the prompt of a row without an answer."""

    def has_answer(self, record: Record) -> bool:
        """Return whether ``render`` finds the row's answer; ``question`` serves the others."""

    def render(self, records: Sequence[Record]) -> list[PromptedRow]:
        """Return the prompts of the rows, in order."""

    def as_json(self) -> dict[str, Any]:
        """Return what ``renderer_from_json`` needs to make it again."""


@dataclass(frozen=True, slots=True)
class NamedTaskRenderer:
    """Renders a named task's rows in the style of a model family."""

    task: str
    style: PromptStyle

    @property
    def kind(self) -> Literal["task"]:
        """What its rows are."""
        return "task"

    def question_of(self, text: str, place: str) -> Record:
        """Return a row of the fields that ``text`` holds as a JSON object.

        Raises:
            InvalidRequest: It does not.
        """
        try:
            fields = parse_json(text)
        except ValueError:
            fields = None
        if not isinstance(fields, dict):
            raise InvalidRequest(
                f"{place} is not a JSON object",
                needed=f"the fields of a row of {self.task}, without its label",
                next_step="give the fields as the task's files have them, or the finished prompt with --raw",
            )
        return Record(fields, place)

    def question(self, record: Record) -> str:
        """Return the prompt of a row; its label, if any, is not looked at.

        Raises:
            DataError: A field is missing.
        """
        task = named_task(self.task)
        return task.render(Record({**record.fields, "label": task.some_label}, record.place), self.style).prompt

    def has_answer(self, record: Record) -> bool:
        """Return whether the row has its label."""
        return record.holds("label")

    def render(self, records: Sequence[Record]) -> list[PromptedRow]:
        """Return the prompts of the rows, in order."""
        task = named_task(self.task)
        return [task.render(record, self.style) for record in records]

    def as_json(self) -> dict[str, Any]:
        """Return what ``renderer_from_json`` needs to make it again."""
        return {"task": self.task, "prompt_style": self.style}


@dataclass(frozen=True, slots=True)
class UserRowRenderer:
    """Renders a user's own rows; labelled ones by ``labels``, others as the kind that they are."""

    chat: ChatRenderer
    labels: LabelTemplate | None
    unlabelled: Literal["completion", "messages"] = "completion"

    @property
    def kind(self) -> RowKind:
        """What its rows are."""
        return self.unlabelled if self.labels is None else "labelled"

    def question_of(self, text: str, place: str) -> Record:
        """Return a row without an answer: the text alone."""
        if self.kind == "messages":
            return Record({"messages": [{"role": "user", "content": text}]}, place)
        return Record({"text" if self.kind == "labelled" else "prompt": text}, place)

    def question(self, record: Record) -> str:
        """Return the prompt of a row without an answer.

        Raises:
            DataError: The row is malformed, or the model's template does not render it.
        """
        if self.labels is not None:
            return self.labels.question(record)
        return completion_prompt(record)[0] if self.kind == "completion" else conversation_prompt(record, self.chat)

    def has_answer(self, record: Record) -> bool:
        """Return whether the row has its answer, and for a label also others to choose from.

        Raises:
            DataError: The row has the fields of no known kind.
        """
        return has_answer(record) and (self.labels is None or bool(self.labels.words))

    def render(self, records: Sequence[Record]) -> list[PromptedRow]:
        """Return the prompts of the rows, in order."""
        return render_rows(records, self.chat, self.labels)

    def as_json(self) -> dict[str, Any]:
        """Return what ``renderer_from_json`` needs to make it again."""
        if self.labels is None:
            return {} if self.unlabelled == "completion" else {"rows": self.unlabelled}
        # A list, for the order of the candidates must survive sorted JSON.
        return {"template": self.labels.template, "label_words": [list(pair) for pair in self.labels.words.items()]}


def renderer_from_json(fields: Mapping[str, Any], chat: ChatRenderer) -> RowRenderer:
    """Return the renderer that ``as_json`` described."""
    if "task" in fields:
        return NamedTaskRenderer(fields["task"], fields["prompt_style"])
    labels = LabelTemplate(fields["template"], dict(fields["label_words"])) if "template" in fields else None
    return UserRowRenderer(chat, labels, fields.get("rows", "completion"))
