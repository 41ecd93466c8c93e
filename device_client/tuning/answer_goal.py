"""What the model's own answers are worth: the objective where only what is written can be judged.

    cost of a row = −grade(row, text of the likeliest answer)         float64; NaN where logits are not finite

A grade is a function of the row and the text. Where a row's answer is the same at several points, it is graded once.
Costs for each token of the longest answer one pass of a token per row; what the grade costs comes on top.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from device_client.tasks.bucketing import RowRange, cut_into_buckets
from device_client.tasks.scoring import LogitsModel, Objective
from device_client.tuning.evaluation import ROWS_AT_ONCE, Evaluation, evaluate
from device_client.tuning.goals import Advance
from device_client.tuning.settings import Metric
from shared.tasks.examples import Example

Grade = Callable[[Example, str], float]
"""(row, the model's answer) → how good it is, higher is better."""


class Speaker(LogitsModel, Protocol):
    """A model that answers prompts."""

    @property
    def answers_alone(self) -> bool:
        """Whether ``answers`` takes one prompt at a time."""

    def answers(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[list[list[int] | None]]:
        """Return the new tokens of each prompt, for each point; None where they are not known."""


@dataclass(frozen=True, slots=True)
class AskedBatch:
    """Rows whose prompts are to be answered.

    Attributes:
        examples: The rows, those with the shortest prompts first.
        order: Where each of them stood.
        cuts: Which of them run side by side.
        answer_tokens: Most tokens of an answer.
    """

    examples: tuple[Example, ...]
    order: tuple[int, ...]
    cuts: tuple[RowRange, ...]
    answer_tokens: int

    @property
    def widest_tokens(self) -> int:
        """Tokens of the largest micro-batch, answers and padding included."""
        columns = [len(self.examples[last - 1].prompt) + self.answer_tokens for _, last in self.cuts]
        return max((last - first) * width for (first, last), width in zip(self.cuts, columns, strict=True))


class AnswerGoal:
    """The mean grade of the model's answers.

    Args:
        speaker: Answers.
        decode: Tokens to text, without control tokens.
        grade: Says how good an answer is.
        metric: What that is called.
        answer_tokens: Most tokens of an answer.
        objective: The loss that is reported beside it; None where rows have no answer.
    """

    def __init__(
        self,
        speaker: Speaker,
        decode: Callable[[Sequence[int]], str],
        grade: Grade,
        *,
        metric: Metric,
        answer_tokens: int,
        objective: Objective | None,
    ) -> None:
        self._speaker, self._decode, self._grade, self._metric = speaker, decode, grade, metric
        self._answer_tokens = answer_tokens
        self._objective: Objective | None = objective

    @property
    def metric(self) -> Metric:
        """What the grades are called."""
        return self._metric

    def lay_out(self, examples: Sequence[Example], micro_batch_rows: int) -> AskedBatch:
        """Return the rows in micro-batches of prompts of similar length."""
        order = sorted(range(len(examples)), key=lambda index: len(examples[index].prompt))
        by_length = tuple(examples[index] for index in order)
        rows = 1 if self._speaker.answers_alone else micro_batch_rows
        cuts = cut_into_buckets([len(example.prompt) for example in by_length], most_rows=rows)
        return AskedBatch(by_length, tuple(order), cuts, self._answer_tokens)

    def costs(self, batch: AskedBatch) -> Tensor:
        """Return −grade of each row at each point, float64 (points, rows)."""
        parts = [self._costs_of(batch.examples[first:last]) for first, last in batch.cuts]
        found = torch.cat(parts, dim=1)
        return torch.empty_like(found).index_copy_(1, torch.tensor(batch.order), found)

    def evaluate(
        self, examples: Sequence[Example], micro_batch_rows: int, advance: Advance | None = None
    ) -> Evaluation:
        """Return the mean grade, and loss and accuracy where the rows have answers."""
        found = Evaluation(math.nan, None, len(examples))
        if self._objective is not None:
            found = evaluate(self._speaker, examples, self._objective, micro_batch_rows=micro_batch_rows)
        ordered = sorted(examples, key=lambda example: len(example.prompt))
        total = 0.0
        for first in range(0, len(ordered), ROWS_AT_ONCE):
            some = ordered[first : first + ROWS_AT_ONCE]
            total -= float(self.costs(self.lay_out(some, micro_batch_rows)).sum())
            if advance is not None:
                advance(len(some))
        return replace(found, score=total / len(examples))

    def _costs_of(self, examples: Sequence[Example]) -> Tensor:
        answers = self._speaker.answers([example.prompt for example in examples], self._answer_tokens)
        graded: dict[tuple[int, str], float] = {}
        costs = torch.full((len(answers), len(examples)), math.nan, dtype=torch.float64)
        for point, of_point in enumerate(answers):
            for row, (example, ids) in enumerate(zip(examples, of_point, strict=True)):
                if ids is None:
                    continue
                text = self._decode(ids)
                if (row, text) not in graded:
                    graded[row, text] = self._grade(example, text)
                costs[point, row] = -graded[row, text]
        return costs
