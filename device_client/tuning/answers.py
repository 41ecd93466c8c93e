"""What a run's rows are answered with, before and after: a confusion matrix, and a few rows to read.

    {"holds": …, "part": "test", "rows": 300, "labels": ["terrible", "great"],
     "confusion": {"before": [[…], …], "after": [[…], …]},          line: the right label; column: the answer
     "shown": [{"place", "prompt", "right", "before", "after"}, …]}

Shown rows are a person's data, so the file says it in ``holds``, and a person may ask for none. They are taken at
equal distances from all judged rows: a choice by what the model answered would flatter it.
Knows nothing about files or models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from device_client.tuning.baselines import has_common_answers
from shared.tasks.examples import Example

ANSWERS = "answers.json"
MOST_WRITTEN_TOKENS = 64
"""Of the answer to a shown row; no more than the longest right answer among them has."""
HOLDS_ROWS = "rows of a person's data and the model's answers to them: keep this file private"
HOLDS_COUNTS = "counts of rows by label; no row of a person's data"

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True, slots=True)
class BothAnswers:
    """Both answers to some rows.

    Attributes:
        before: The bundle's own, one for each row.
        after: Those of the run's best values.
    """

    before: Sequence[str]
    after: Sequence[str]


def rows_shown(examples: Sequence[Example], count: int) -> list[int]:
    """Return the indices of at most ``count`` rows at equal distances, the first row among them."""
    count = min(count, len(examples))
    return [index * len(examples) // count for index in range(count)]


def tokens_to_write(examples: Sequence[Example]) -> int:
    """Return how many tokens the answers to shown rows may have."""
    longest = max((len(answer) for example in examples for answer in example.candidates), default=MOST_WRITTEN_TOKENS)
    return min(longest, MOST_WRITTEN_TOKENS)


def confusion_matrix(examples: Sequence[Example], chosen: Sequence[int]) -> list[list[int]]:
    """Return how often each right label (line) was answered with each label (column)."""
    size = len(examples[0].candidates)
    counts = [[0] * size for _ in range(size)]
    for example, answer in zip(examples, chosen, strict=True):
        counts[example.right][answer] += 1
    return counts


def confusion_of(
    examples: Sequence[Example], before: Sequence[int], after: Sequence[int], decode: Decode
) -> dict[str, Any]:
    """Return labels and both matrices as answers.json has them; nulls where rows do not share their answers.

    Args:
        examples: The judged rows.
        before: Index of the chosen candidate of each row, with the bundle's own values; empty where nothing is chosen.
        after: The same with the run's best values.
        decode: Tokens to text.
    """
    if not before or not has_common_answers(examples):
        return {"labels": None, "confusion": None}
    return {
        "labels": [decode(answer).strip() for answer in examples[0].candidates],
        "confusion": {"before": confusion_matrix(examples, before), "after": confusion_matrix(examples, after)},
    }


def shown_rows(examples: Sequence[Example], answers: BothAnswers, decode: Decode) -> list[dict[str, str | None]]:
    """Return rows with their right answer, where one is known, and both answers, as answers.json has them."""
    return [
        {
            "place": example.place,
            "prompt": decode(example.prompt),
            "right": decode(example.candidates[example.right]).strip() if example.has_answer else None,
            "before": before,
            "after": after,
        }
        for example, before, after in zip(examples, answers.before, answers.after, strict=True)
    ]
