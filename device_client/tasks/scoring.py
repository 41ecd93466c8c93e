"""Log-probabilities of candidate answers, and the two losses made of them.

    s_c = (1 / T_c) Σ_t log p(y_c,t | prompt, y_c,<t)      mean over the T_c tokens of candidate c
    candidates:  ℓ = −log softmax(s)[right]                over the candidate answers
    vocabulary:  ℓ = −s[right]                             over all tokens of the vocabulary
    L = (1 / N) Σ ℓ                                        nats per answer, N answers

All for several points at once: a point is one θ at which the loss is wanted, and the model decides how many run.
Per-answer sums do not depend on the micro-batches, so the loss is exact for any cut (up to the model's own rounding).
Sums are float64 on the host: the order of additions is fixed, which atomics on an accelerator would not promise.

Costs one forward pass per micro-batch. The host waits once per call, for the log-probabilities of all passes together.
Beside the logits at most 4 MiB of log-softmax are held, or one row. Knows nothing about layouts or training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from device_client.model.token_batch import TokenBatch
from device_client.tasks.layout import AnswerBatch
from shared.errors import DataError
from shared.tasks.examples import Example

Objective = Literal["candidates", "vocabulary"]

_VALUES_AT_ONCE = 1 << 20
"""Log-softmax values held at once, float32: the same 4 MiB again and again, not one more copy of all logits."""


class LogitsModel(Protocol):
    """What is needed of a model."""

    @property
    def device(self) -> torch.device:
        """Where it computes, and batches should lie."""

    def logits(self, batch: TokenBatch) -> Tensor:
        """Return float32 logits (points, n, vocabulary) at the wanted positions."""


def answer_scores(model: LogitsModel, batch: AnswerBatch) -> Tensor:
    """Return the mean log-probability per token of every answer, float64 (points, answers) on the host.

    Answers that were not laid out (the wrong ones, where only right ones were asked for) score −inf. Differentiable
    where the model's logits are.

    Args:
        model: Its points are already written.
        batch: Best laid out on the model's device.
    """
    read = [target_log_probabilities(model.logits(bucket.tokens), bucket.targets) for bucket in batch.buckets]
    # The one moment at which the host waits for the device.
    return scores_of(torch.cat(read, dim=1).cpu().double(), batch)


def scores_of(log_probabilities: Tensor, batch: AnswerBatch) -> Tensor:
    """Return what ``answer_scores`` does, from the log-probabilities of all buckets one behind the other.

    Args:
        log_probabilities: float64 (points, reads) on the host.
        batch: Whose they are.
    """
    index = batch.index
    sums = torch.zeros(len(log_probabilities), len(index.lengths), dtype=torch.float64)
    sums = sums.index_add(1, index.read_answers, log_probabilities[:, index.reads])
    is_scored = torch.zeros(len(index.lengths), dtype=torch.bool).index_fill(0, index.read_answers, value=True)
    return torch.where(is_scored, sums / index.lengths, -torch.inf)


def target_log_probabilities(logits: Tensor, targets: Tensor) -> Tensor:
    """Return log softmax(logits) at the target tokens, a few rows at a time; each row's bits depend on it alone.

    Args:
        logits: float32 (points, n, vocabulary).
        targets: int64 (n, width), on the device of ``logits``.

    Returns:
        float32 (points, n · width), on that device, without waiting for it.
    """
    points, _, vocabulary = logits.shape
    rows = max(1, _VALUES_AT_ONCE // vocabulary)
    parts = torch.split(logits.flatten(0, 1), rows)
    wanted = torch.split(targets.repeat(points, 1), rows)
    read = [torch.log_softmax(part, dim=1).gather(1, tokens) for part, tokens in zip(parts, wanted, strict=True)]
    return torch.cat(read).view(points, -1)


def answer_losses(scores: Tensor, batch: AnswerBatch, objective: Objective) -> Tensor:
    """Return each example's loss ℓ, float64 (points, examples).

    Args:
        scores: float64 (points, answers).
        batch: Whose scores they are.
        objective: Which loss.

    Raises:
        DataError: The candidates loss was asked for where only right answers are scored or there is no choice.
    """
    right = scores[:, batch.index.right]
    return -right if objective == "vocabulary" else torch.logsumexp(scores_by_example(scores, batch), dim=2) - right


def choices(scores: Tensor, batch: AnswerBatch) -> Tensor:
    """Return which candidate of each example scores highest, the first of equals, int64 (points, examples).

    Args:
        scores: float64 (points, answers).
        batch: Whose scores they are.

    Raises:
        DataError: Only right answers are scored, or there is no choice.
    """
    return scores_by_example(scores, batch).argmax(dim=2)


def is_right(scores: Tensor, batch: AnswerBatch) -> Tensor:
    """Return whether each example scores the right answer highest, bool (points, examples); the first of equals counts.

    Args:
        scores: float64 (points, answers).
        batch: Whose scores they are.

    Raises:
        DataError: Only right answers are scored, or there is no choice.
    """
    return choices(scores, batch) == torch.tensor([example.right for example in batch.examples])


def scores_by_example(scores: Tensor, batch: AnswerBatch) -> Tensor:
    """Return scores as (points, examples, most candidates), −inf where an example has fewer.

    Args:
        scores: float64 (points, answers).
        batch: Whose scores they are.

    Raises:
        DataError: Only right answers are scored, or there is no choice.
    """
    if batch.is_right_only or any(example.is_free for example in batch.examples):
        raise DataError("the candidates of these rows cannot be compared", needed="two or more candidates for each row")
    candidates = batch.index.candidates
    return torch.where(candidates >= 0, scores[:, candidates.clamp(min=0)], -torch.inf)


def settled_objective(examples: Sequence[Example], asked: Objective | None, metric: str | None) -> Objective | None:
    """Return the loss that is lowered on the rows, or reported beside a metric; None where a row has no answer.

    Args:
        examples: The rows.
        asked: Which loss; None takes ``candidates`` where every row offers a choice, else ``vocabulary``.
        metric: What is raised instead.

    Raises:
        DataError: The rows do not have what was asked for.
    """
    objective = default_objective(examples) if asked is None else asked
    check_objective(examples, objective)
    check_metric(examples, metric)
    return objective


def default_objective(examples: Sequence[Example]) -> Objective | None:
    """Return ``candidates`` where every row offers a choice, else ``vocabulary``; None where one has no answer."""
    if not all(example.has_answer for example in examples):
        return None
    return "vocabulary" if any(example.is_free for example in examples) else "candidates"


def check_objective(examples: Sequence[Example], objective: Objective | None) -> None:
    """Refuse a loss that the rows do not have.

    Args:
        examples: The rows.
        objective: Which loss; None is no loss, which rows without an answer have.

    Raises:
        DataError: A row has no answer, or is a free completion where candidates are to be compared.
    """
    if objective is None:
        return
    lacking = next((example.place for example in examples if not example.has_answer), None)
    if lacking is not None:
        raise DataError(
            f"--loss {objective} with {lacking}, which has no answer",
            needed="an answer in every row",
            next_step="leave --loss out: the checker alone judges these rows",
        )
    if objective == "candidates" and any(example.is_free for example in examples):
        raise DataError(
            "--loss candidates with rows that have no candidate answers",
            needed="labelled rows or a named task",
            next_step="--loss vocabulary",
        )


def check_metric(examples: Sequence[Example], metric: str | None) -> None:
    """Refuse accuracy for rows without candidates.

    Raises:
        DataError: A row is a free completion.
    """
    if metric == "accuracy" and any(example.is_free for example in examples):
        raise DataError(
            "--objective accuracy with rows that have no candidate answers",
            needed="labelled rows or a named task",
            next_step="--objective exact-match or f1: they compare what the model writes with the row's answer",
        )
