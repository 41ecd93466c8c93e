"""Loss and accuracy of a θ on rows that are not trained on, and what a run's metric says of it.

    loss      mean over rows of the loss, nats per answer; NaN where a row has no answer
    accuracy  share of rows whose right answer scores highest; None where rows offer nothing to choose from
    score     mean over rows of the metric that the run raises; None where it lowers the loss

The same rows in the same layout for every θ, so that two evaluations differ by θ alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from device_client.tasks.layout import lay_out
from device_client.tasks.scoring import (
    LogitsModel,
    Objective,
    answer_losses,
    answer_scores,
    choices,
    scores_by_example,
)
from shared.tasks.examples import Example

ROWS_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a θ scores.

    Attributes:
        loss: Nats per answer.
        accuracy: 0 … 1, or None.
        rows: How many rows were scored.
        score: The metric, higher is better, or None.
        choices: Of each row the candidate that scores highest, the first of equals; empty where rows offer no choice,
            and where the evaluation was read from a file, which keeps no answers.
    """

    loss: float
    accuracy: float | None
    rows: int
    score: float | None = None
    choices: tuple[int, ...] = field(default=(), compare=False, repr=False)

    @property
    def cost(self) -> float:
        """What the run lowers."""
        return self.loss if self.score is None else -self.score

    def as_json(self) -> dict[str, float | int | None]:
        """Return the fields by name, the score where there is one; a loss that is not finite is null."""
        fields: dict[str, float | int | None] = {
            "loss": self.loss if math.isfinite(self.loss) else None,
            "accuracy": self.accuracy,
            "rows": self.rows,
        }
        return fields if self.score is None else fields | {"score": self.score}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Evaluation:
        """Return what ``as_json`` wrote; a null loss comes back as infinity."""
        loss = math.inf if fields["loss"] is None else fields["loss"]
        return cls(loss, fields["accuracy"], fields["rows"], fields.get("score"))


def choice_scores(
    model: LogitsModel,
    examples: Sequence[Example],
    *,
    micro_batch_rows: int,
    advance: Callable[[int], None] | None = None,
) -> Tensor:
    """Return what each candidate of each row scores, float64 (rows, most candidates), −inf where a row has fewer.

    Args:
        model: Its θ, one point, is already written.
        examples: At least one, each with a choice.
        micro_batch_rows: Most sequences side by side.
        advance: Receives how many more rows are done.
    """
    most = max(len(example.candidates) for example in examples)
    found = torch.full((len(examples), most), -torch.inf, dtype=torch.float64)
    order = sorted(range(len(examples)), key=lambda index: examples[index].token_count)
    for first in range(0, len(order), ROWS_AT_ONCE):
        indices = order[first : first + ROWS_AT_ONCE]
        batch = lay_out([examples[i] for i in indices], micro_batch_rows=micro_batch_rows, device=model.device)
        (scores,) = scores_by_example(answer_scores(model, batch), batch)
        found[indices, : scores.shape[1]] = scores.detach()
        if advance is not None:
            advance(len(indices))
    return found


def evaluate(
    model: LogitsModel,
    examples: Sequence[Example],
    objective: Objective,
    *,
    micro_batch_rows: int,
    advance: Callable[[int], None] | None = None,
) -> Evaluation:
    """Return what the model scores as it stands.

    Args:
        model: Its θ, one point, is already written.
        examples: At least one.
        objective: Which loss.
        micro_batch_rows: Most sequences side by side.
        advance: Told how many more rows are done.
    """
    total = 0.0
    has_choice = not any(example.is_free for example in examples)
    chosen: dict[int, int] = {}
    # Rows of similar length run together; the order of the sum stays that of the sorted rows.
    order = sorted(range(len(examples)), key=lambda index: examples[index].token_count)
    for first in range(0, len(order), ROWS_AT_ONCE):
        indices = order[first : first + ROWS_AT_ONCE]
        batch = lay_out([examples[i] for i in indices], micro_batch_rows=micro_batch_rows, device=model.device)
        scores = answer_scores(model, batch)
        total += float(answer_losses(scores, batch, objective).sum())
        if has_choice:
            chosen |= zip(indices, choices(scores, batch)[0].tolist(), strict=True)
        if advance is not None:
            advance(len(batch))
    rows = len(examples)
    if not has_choice:
        return Evaluation(total / rows, None, rows)
    answers = tuple(chosen[index] for index in range(rows))
    right = sum(answer == example.right for answer, example in zip(answers, examples, strict=True))
    return Evaluation(total / rows, right / rows, rows, choices=answers)
