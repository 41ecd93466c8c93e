"""What turns the rows of one run into prompts, in a form that a run's configuration can keep.

    {"task": "SST-2", "prompt_style": "opt"}                           a named task
    {"template": "{text} It was {label}", "label_words": {…}}          labelled rows
    {}                                                                 completions and conversations

So rows that come later are rendered exactly as the training rows were. Knows nothing about files or tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from shared.tasks.conversations import ChatRenderer
from shared.tasks.datasets import Record
from shared.tasks.named_tasks import PromptStyle, named_task
from shared.tasks.prompted_row import PromptedRow
from shared.tasks.templates import LabelTemplate, render_rows


class RowRenderer(Protocol):
    """Renders the rows of one run."""

    def render(self, records: Sequence[Record]) -> list[PromptedRow]:
        """Return the prompts of the rows, in order."""

    def as_json(self) -> dict[str, Any]:
        """Return what ``renderer_from_json`` needs to make it again."""


@dataclass(frozen=True, slots=True)
class NamedTaskRenderer:
    """Renders a named task's rows in the style of a model family."""

    task: str
    style: PromptStyle

    def render(self, records: Sequence[Record]) -> list[PromptedRow]:
        """Return the prompts of the rows, in order."""
        task = named_task(self.task)
        return [task.render(record, self.style) for record in records]

    def as_json(self) -> dict[str, Any]:
        """Return what ``renderer_from_json`` needs to make it again."""
        return {"task": self.task, "prompt_style": self.style}


@dataclass(frozen=True, slots=True)
class UserRowRenderer:
    """Renders a user's own rows; labelled ones by ``labels``."""

    chat: ChatRenderer
    labels: LabelTemplate | None

    def render(self, records: Sequence[Record]) -> list[PromptedRow]:
        """Return the prompts of the rows, in order."""
        return render_rows(records, self.chat, self.labels)

    def as_json(self) -> dict[str, Any]:
        """Return what ``renderer_from_json`` needs to make it again."""
        if self.labels is None:
            return {}
        # A list, for the order of the candidates must survive sorted JSON.
        return {"template": self.labels.template, "label_words": [list(pair) for pair in self.labels.words.items()]}


def renderer_from_json(fields: Mapping[str, Any], chat: ChatRenderer) -> RowRenderer:
    """Return the renderer that ``as_json`` described."""
    if "task" in fields:
        return NamedTaskRenderer(fields["task"], fields["prompt_style"])
    labels = LabelTemplate(fields["template"], dict(fields["label_words"])) if "template" in fields else None
    return UserRowRenderer(chat, labels)
