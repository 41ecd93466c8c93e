"""The paper's seven tasks: their files as GLUE and SuperGLUE publish them, and the prompts of Table 6.

    SST-2  (llama)  ### Sentence: <text> ### Sentiment: negative/positive      (others)  <text> It was terrible/great
    RTE    (llama)  Suppose "<premise>" Can we infer that "<hypothesis>"? Yes or No? Yes/No
           (others) <premise> Does this mean that "<hypothesis>" is true? Yes or No? Yes/No
    CB     Suppose <premise> Can we infer that "<hypothesis>"? Yes, No, or Maybe? Yes/No/Maybe
    BoolQ  <passage> <question>? Yes/No
    WSC    <text> In the previous sentence, does the pronoun "<span2>" refer to <span1>? Yes or No? Yes/No
    WiC    Does the word "<word>" have the same meaning in these two sentences? Yes, No? <sent1> <sent2> Yes/No
    COPA   <premise> so/because <candidate>

Table 6 sets each prompt on one line; its words are kept, with single spaces between the parts. What the table leaves
open is done so: BoolQ's question gets a capital first letter and one question mark; WSC's pronoun is written small;
COPA's premise loses its full stop and its candidate begins with a small letter, unless with I. Rows come from
``<folder>/<task>/``; the official validation rows are the test rows, for the official test labels are not public.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shared.errors import DataError, InvalidRequest
from shared.tasks.datasets import Record, read_records
from shared.tasks.prompted_row import PromptedRow

Split = Literal["train", "test"]
PromptStyle = Literal["llama", "mistral", "opt"]

SPLIT_FILES: dict[Split, tuple[str, ...]] = {
    "train": ("train.tsv", "train.jsonl", "train32.jsonl"),
    "test": ("validation.tsv", "val.jsonl", "dev.tsv", "dev32.jsonl"),
}
"""Where a split's rows may lie, first choice first."""

YES_NO = ("Yes", "No")


@dataclass(frozen=True, slots=True)
class NamedTask:
    """One task of Table 1.

    Attributes:
        name: As the paper writes it, and the name of its folder.
        render: Turns one row into a prompt, in the style of a model family.
        some_label: One of its labels, for questions: prompts do not depend on it.
        validation_rows: How many rows Appendix C.4 chooses the best values by.
    """

    name: str
    render: Callable[[Record, PromptStyle], PromptedRow]
    some_label: str | int | bool
    validation_rows: int = 500

    def records(self, folder: Path, split: Split) -> list[Record]:
        """Return the rows of ``folder/<name>``, or of ``folder`` itself where it holds the files.

        Raises:
            DataError: No file of that split is there, or it cannot be read.
        """
        for place in (folder / self.name, folder):
            for name in SPLIT_FILES[split]:
                if (place / name).is_file():
                    return read_records(place / name, glue=True)
        raise DataError(
            f"no {split} rows of {self.name} in {folder / self.name}",
            needed=f"one of {', '.join(SPLIT_FILES[split])}",
            next_step=f"name the folder that holds the folder {self.name}",
        )


def named_task(name: str) -> NamedTask:
    """Return the task of that name, whatever its case.

    Raises:
        InvalidRequest: There is no such task.
    """
    for task in NAMED_TASKS:
        if task.name.lower() == name.lower():
            return task
    raise InvalidRequest(f"no task {name!r}", needed=f"one of {', '.join(task.name for task in NAMED_TASKS)}")


def prompt_style(model_type: str) -> PromptStyle:
    """Return the column of Table 6 for a model family; families that the paper did not try take Mistral's."""
    return "llama" if model_type == "llama" else "opt" if model_type == "opt" else "mistral"


def _row(record: Record, prompt: str, words: tuple[str, ...], right: int) -> PromptedRow:
    return PromptedRow(prompt, tuple(f" {word}" for word in words), right, record.place)


def _label_index(record: Record, labels: Mapping[object, int]) -> int:
    label = record.field("label")
    key = label.lower() if isinstance(label, str) else label
    if not isinstance(key, (str, int)) or key not in labels:
        raise DataError(f"{record.place}: not one of the task's labels", needed=f"one of {', '.join(map(str, labels))}")
    return labels[key]


def _render_sst2(record: Record, style: PromptStyle) -> PromptedRow:
    text = record.text("sentence").strip()
    right = _label_index(record, {"0": 0, "1": 1, 0: 0, 1: 1})
    if style == "llama":
        return _row(record, f"### Sentence: {text} ### Sentiment:", ("negative", "positive"), right)
    return _row(record, f"{text} It was", ("terrible", "great"), right)


def _render_rte(record: Record, style: PromptStyle) -> PromptedRow:
    premise, hypothesis = record.text("premise").strip(), record.text("hypothesis").strip()
    right = _label_index(record, {"entailment": 0, "not_entailment": 1})
    if style == "llama":
        prompt = f'Suppose "{premise}" Can we infer that "{hypothesis}"? Yes or No?'
    else:
        prompt = f'{premise} Does this mean that "{hypothesis}" is true? Yes or No?'
    return _row(record, prompt, YES_NO, right)


def _render_cb(record: Record, _style: PromptStyle) -> PromptedRow:
    premise, hypothesis = record.text("premise").strip(), record.text("hypothesis").strip()
    prompt = f'Suppose {premise} Can we infer that "{hypothesis}"? Yes, No, or Maybe?'
    right = _label_index(record, {"entailment": 0, "contradiction": 1, "neutral": 2})
    return _row(record, prompt, ("Yes", "No", "Maybe"), right)


def _render_boolq(record: Record, _style: PromptStyle) -> PromptedRow:
    question = record.text("question").strip().removesuffix("?")
    prompt = f"{record.text('passage').strip()} {question[:1].upper()}{question[1:]}?"
    return _row(record, prompt, YES_NO, _label_index(record, {True: 0, False: 1}))


def _render_wsc(record: Record, _style: PromptStyle) -> PromptedRow:
    target = record.field("target")
    spans = Record(target if isinstance(target, dict) else {}, f"{record.place}, 'target'")
    pronoun, noun = spans.text("span2_text").lower(), spans.text("span1_text")
    question = f'In the previous sentence, does the pronoun "{pronoun}" refer to {noun}? Yes or No?'
    return _row(record, f"{record.text('text').strip()} {question}", YES_NO, _label_index(record, {True: 0, False: 1}))


def _render_wic(record: Record, _style: PromptStyle) -> PromptedRow:
    question = f'Does the word "{record.text("word")}" have the same meaning in these two sentences? Yes, No?'
    prompt = f"{question} {record.text('sentence1').strip()} {record.text('sentence2').strip()}"
    return _row(record, prompt, YES_NO, _label_index(record, {True: 0, False: 1}))


def _render_copa(record: Record, _style: PromptStyle) -> PromptedRow:
    conjunctions = {"cause": "because", "effect": "so"}
    question = record.text("question")
    if question not in conjunctions:
        raise DataError(f"{record.place}: 'question' is something else", needed="cause or effect")
    prompt = f"{record.text('premise').strip().removesuffix('.')} {conjunctions[question]}"
    choices = tuple(_small_first_letter(record.text(name).strip()) for name in ("choice1", "choice2"))
    return _row(record, prompt, choices, _label_index(record, {0: 0, 1: 1}))


def _small_first_letter(sentence: str) -> str:
    first = sentence.split(" ", 1)[0]
    return sentence if first == "I" or first.startswith("I'") else first.lower() + sentence[len(first) :]


NAMED_TASKS = (
    NamedTask("SST-2", _render_sst2, "0"),
    NamedTask("RTE", _render_rte, "entailment"),
    NamedTask("CB", _render_cb, "entailment", validation_rows=100),
    NamedTask("BoolQ", _render_boolq, True),
    NamedTask("WSC", _render_wsc, True),
    NamedTask("WiC", _render_wic, True),
    NamedTask("COPA", _render_copa, 0, validation_rows=100),
)
