"""How a user's rows become prompts: text with a label, a prompt with its completion, a conversation.

    {"text", "label"}         template.format(text, word of label); the answers are the words of all labels
    {"prompt", "completion"}  the two texts joined as they stand, end of text after the completion
    {"messages"}              one row per assistant turn, by the model's chat template (``conversations``)

A template is text with ``{text}`` and, after it, ``{label}``. White space before the label goes to the answer, for
that is where byte-pair and sentence-piece vocabularies keep it: "It was" + " great".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from shared.errors import DataError, InvalidRequest
from shared.tasks.conversations import ChatRenderer, render_conversation
from shared.tasks.datasets import ROW_FORMATS, Record
from shared.tasks.prompted_row import PromptedRow
from shared.tasks.tables import unknown_columns

DEFAULT_TEMPLATE = "{text}\nLabel: {label}"
RowKind = Literal["labelled", "completion", "messages"]


@dataclass(frozen=True, slots=True)
class LabelTemplate:
    """A prompt around one text and the words that stand for its labels.

    Attributes:
        template: Text with ``{text}`` and then ``{label}``, each once.
        words: Label → word, in the order of the candidates; none where every text is a question without an answer.
    """

    template: str
    words: Mapping[str, str]

    @property
    def _known_labels(self) -> str:
        """The labels for an error message: named only where the user typed them, for others come from private rows."""
        if all(label == word for label, word in self.words.items()):
            return f"one of the {len(self.words)} labels of the training rows"
        return f"one of: {', '.join(self.words)}"

    def __post_init__(self) -> None:
        before, has_text, rest = self.template.partition("{text}")
        if not has_text or rest.count("{label}") != 1 or "{label}" in before or "{text}" in rest:
            raise InvalidRequest(
                f"--template {self.template!r}",
                needed="{text} once and, after it, {label} once",
                next_step='for example --template "{text} It was {label}"',
            )

    def render(self, record: Record) -> PromptedRow:
        """Return the row with every label's word as a candidate.

        Raises:
            DataError: A field is missing, or the label is none of ``words``.
        """
        label = label_of(record)
        if label not in self.words:
            raise DataError(
                f"{record.place}: its label is none that the run was told or has seen in training rows",
                needed=self._known_labels,
                next_step="add training rows of that label, or correct the line",
            )
        before, _, after = self.template.partition("{label}")
        gap = before[len(before.rstrip()) :]
        answers = tuple(f"{gap}{word}{after}" for word in self.words.values())
        return PromptedRow(self.question(record), answers, list(self.words).index(label), record.place)

    def question(self, record: Record) -> str:
        """Return the prompt around the row's text, which ends where the label begins.

        Raises:
            DataError: The text is missing.
        """
        return self.template.partition("{label}")[0].rstrip().replace("{text}", record.text("text").strip())


def label_of(record: Record) -> str:
    """Return the row's label as text; numbers and booleans as JSON writes them.

    Raises:
        DataError: The label is missing or neither text, a whole number nor a boolean.
    """
    label = record.field("label")
    if isinstance(label, bool):
        return str(label).lower()
    if not isinstance(label, (str, int)):
        raise DataError(f"{record.place}: 'label' is no text", needed="text, a whole number, true or false")
    return str(label).strip()


def label_template(
    records: Iterable[Record], template: str = DEFAULT_TEMPLATE, words: Mapping[str, str] | None = None
) -> LabelTemplate:
    """Return the template whose candidates are ``words``, or else the labels of these training rows in sorted order.

    Raises:
        DataError: Fewer than two labels occur, or a label has no word.
    """
    labels = {label_of(record): record.place for record in records}
    if words is None:
        words = {label: label for label in sorted(labels)}
    for label, place in labels.items():
        if label not in words:
            raise DataError(
                f"{place}: its label has no word", needed=f"one of: {', '.join(words)}",
                next_step="add that line's label to --label-words label=word,…",
            )  # fmt: skip
    if len(words) < 2:
        raise DataError(
            "all of these rows have the same label",
            needed="at least two labels to choose between",
            next_step="name the others too: --label-words label=word,…; or add rows of another label",
        )
    return LabelTemplate(template, words)


def parse_label_words(argument: str) -> dict[str, str]:
    """Return label → word of ``negative=terrible,positive=great``.

    Raises:
        InvalidRequest: It is not of that form, or a label or word occurs twice.
    """
    pairs = [part.partition("=") for part in argument.split(",")]
    words = {label.strip(): word.strip() for label, _, word in pairs}
    if not all(words) or not all(words.values()) or len(words) < len(pairs) or len(set(words.values())) < len(pairs):
        raise InvalidRequest(
            f"--label-words {argument!r}", needed="label=word,label=word with different labels and words"
        )
    return words


def row_kind(record: Record) -> RowKind:
    """Return what the row is.

    Raises:
        DataError: It has the fields of no known kind.
    """
    if "messages" in record.fields or isinstance(record.fields.get("prompt"), list):
        return "messages"
    if "prompt" in record.fields or "completion" in record.fields:
        return "completion"
    if "text" in record.fields or "label" in record.fields:
        return "labelled"
    raise DataError(
        f"{record.place}: the fields of no known kind of row: {unknown_columns(list(record.fields))}",
        needed=ROW_FORMATS,
        next_step="rename the fields (in a table: in its first line), or name the data's task with --task",
    )


def has_answer(record: Record) -> bool:
    """Return whether a row holds the answer to what it asks: a label, a completion, or a last turn of the assistant.

    Raises:
        DataError: It has the fields of no known kind.
    """
    kind = row_kind(record)
    if kind != "messages":
        return record.holds("label" if kind == "labelled" else "completion")
    messages = record.fields.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    return bool(record.fields.get("completion")) or (isinstance(last, dict) and last.get("role") == "assistant")


def render_rows(
    records: Sequence[Record], chat: ChatRenderer, labels: LabelTemplate | None = None
) -> list[PromptedRow]:
    """Return the prompts of rows that are all of one kind; labelled rows need ``labels``.

    Raises:
        DataError: A row is of another kind than the first, or a field is missing or wrong.
    """
    kind = row_kind(records[0])
    rendered: list[PromptedRow] = []
    for record in records:
        if row_kind(record) != kind:
            raise DataError(f"{record.place}: a {row_kind(record)} row among {kind} rows", needed="rows of one kind")
        if kind == "labelled":
            if labels is None:
                raise DataError(f"{record.place}: a labelled row, but the run was tuned on {ROW_FORMATS}")
            rendered.append(labels.render(record))
        elif kind == "completion":
            rendered.append(render_completion(record))
        else:
            rendered.extend(render_conversation(record, chat))
    return rendered


def render_completion(record: Record) -> PromptedRow:
    """Return a prompt and its completion, joined as they stand.

    Raises:
        DataError: A field is missing or no text.
    """
    prompt, gap = completion_prompt(record)
    return PromptedRow(prompt, (gap + record.text("completion"),), 0, record.place, ends_text=True)


def completion_prompt(record: Record) -> tuple[str, str]:
    """Return the prompt without its trailing spaces, and the spaces: they belong to the answer's first token.

    Raises:
        DataError: The prompt is missing or no text.
    """
    prompt = record.text("prompt")
    stripped = prompt.rstrip(" ")
    return stripped, prompt[len(stripped) :]
