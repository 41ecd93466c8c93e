"""Log-probabilities of candidate answers, and the two losses made of them.

    s_c = (1 / T_c) Σ_t log p(y_c,t | prompt, y_c,<t)      mean over the T_c tokens of candidate c
    candidates:  ℓ = −log softmax(s)[right]                over the candidate answers
    vocabulary:  ℓ = −s[right]                             over all tokens of the vocabulary
    L = (1 / N) Σ ℓ                                        nats per answer, N answers

Where every candidate of a row is one token, all of them are read from one sequence, at the last position of the
prompt; otherwise each candidate is a sequence of its own, and the vocabulary loss needs only the right one.

Sequences are sorted by length and cut into micro-batches; per-answer sums do not depend on the cut, so the loss is
exact for any micro-batch (up to the model's own rounding). Only wanted positions get logits. Sums are float64 on the
host: the order of additions is fixed, which atomics on an accelerator would not promise.
Costs one forward pass per micro-batch. Knows nothing about training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol

import torch
from torch import Tensor

from device_client.model.token_batch import TokenBatch
from shared.errors import DataError
from shared.tasks.examples import Example

Objective = Literal["candidates", "vocabulary"]
MicroBatch = tuple[int, int]
"""(first, last + 1) of a run of sequences."""


class LogitsModel(Protocol):
    """What is needed of a model."""

    def logits(self, batch: TokenBatch) -> Tensor:
        """Return float32 logits (n, vocabulary) at the wanted positions."""


@dataclass(frozen=True, slots=True)
class ScoredSequence:
    """Tokens to run, and what to read from their logits.

    Attributes:
        tokens: The input ids.
        columns: Position of each wanted logit vector.
        reads: (index into ``columns``, token whose log-probability is wanted, index of its answer) triples.
    """

    tokens: tuple[int, ...]
    columns: tuple[int, ...]
    reads: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class AnswerBatch:
    """Examples laid out for the model once, and scored as often as wanted: both signs of a step see the same layout.

    Attributes:
        examples: What is scored.
        sequences: Sorted by length.
        micro_batches: Consecutive runs of ``sequences``.
        first_answer: Index of each example's first answer; answers are numbered through the batch.
        is_right_only: Whether only right answers are scored.
    """

    examples: tuple[Example, ...]
    sequences: tuple[ScoredSequence, ...]
    micro_batches: tuple[MicroBatch, ...]
    first_answer: tuple[int, ...]
    is_right_only: bool

    def __len__(self) -> int:
        return len(self.examples)


def lay_out(examples: Sequence[Example], *, micro_batch_rows: int, right_only: bool = False) -> AnswerBatch:
    """Return the examples as micro-batches of at most ``micro_batch_rows`` sequences of similar length.

    Args:
        examples: At least one.
        micro_batch_rows: Sequences that the memory allows side by side.
        right_only: Score the right answers alone, which is all that the vocabulary loss needs.
    """
    sequences: list[ScoredSequence] = []
    first_answer, answer_count = [], 0
    for example in examples:
        first_answer.append(answer_count)
        sequences += _sequences(example, answer_count, right_only=right_only)
        answer_count += len(example.candidates)
    sequences.sort(key=lambda sequence: len(sequence.tokens))
    cuts = [*range(0, len(sequences), micro_batch_rows), len(sequences)]
    return AnswerBatch(
        tuple(examples), tuple(sequences), tuple(pairwise(cuts)), tuple(first_answer), is_right_only=right_only
    )


def _sequences(example: Example, first_answer: int, *, right_only: bool) -> list[ScoredSequence]:
    wanted = [example.right] if right_only else range(len(example.candidates))
    start = len(example.prompt) - 1
    if example.has_single_token_candidates:
        reads = tuple((0, example.candidates[index][0], first_answer + index) for index in wanted)
        return [ScoredSequence(example.prompt, (start,), reads)]
    return [
        ScoredSequence(
            example.prompt + candidate[:-1],
            tuple(range(start, start + len(candidate))),
            tuple((position, token, first_answer + index) for position, token in enumerate(candidate)),
        )
        for index in wanted
        for candidate in [example.candidates[index]]
    ]


def token_batch(sequences: Sequence[ScoredSequence]) -> TokenBatch:
    """Return the sequences side by side, padded on the right with id 0."""
    width = max(len(sequence.tokens) for sequence in sequences)
    input_ids = torch.zeros(len(sequences), width, dtype=torch.int64)
    attention_mask = torch.zeros(len(sequences), width, dtype=torch.int64)
    for row, sequence in enumerate(sequences):
        input_ids[row, : len(sequence.tokens)] = torch.tensor(sequence.tokens)
        attention_mask[row, : len(sequence.tokens)] = 1
    wanted = [(row, column) for row, sequence in enumerate(sequences) for column in sequence.columns]
    rows, columns = torch.tensor(wanted, dtype=torch.int64).T
    return TokenBatch(input_ids, attention_mask, rows.contiguous(), columns.contiguous())


def answer_scores(model: LogitsModel, batch: AnswerBatch) -> Tensor:
    """Return the mean log-probability per token of every answer, float64 (answers,) on the host.

    Answers that were not laid out (the wrong ones, where only right ones were asked for) score −inf. Differentiable
    where the model's logits are.
    """
    lengths = [len(candidate) for example in batch.examples for candidate in example.candidates]
    sums = torch.zeros(len(lengths), dtype=torch.float64)
    is_scored = torch.zeros(len(lengths), dtype=torch.bool)
    for first, last in batch.micro_batches:
        answers, log_probabilities = _read(model, batch.sequences[first:last])
        sums = sums.index_add(0, answers, log_probabilities)
        is_scored[answers] = True
    return torch.where(is_scored, sums / torch.tensor(lengths, dtype=torch.float64), -torch.inf)


def _read(model: LogitsModel, sequences: Sequence[ScoredSequence]) -> tuple[Tensor, Tensor]:
    logits = model.logits(token_batch(sequences))
    positions, tokens, answers, offset = [], [], [], 0
    for sequence in sequences:
        for position, token, answer in sequence.reads:
            positions.append(offset + position)
            tokens.append(token)
            answers.append(answer)
        offset += len(sequence.columns)
    wanted = torch.tensor([positions, tokens], device=logits.device)
    log_probabilities = torch.log_softmax(logits.float(), dim=-1)[wanted[0], wanted[1]]
    return torch.tensor(answers), log_probabilities.cpu().double()


def answer_losses(scores: Tensor, batch: AnswerBatch, objective: Objective) -> Tensor:
    """Return each example's loss ℓ, float64 (examples,).

    Raises:
        DataError: The candidates loss was asked for where only right answers are scored or there is no choice.
    """
    right = torch.tensor([first + e.right for first, e in zip(batch.first_answer, batch.examples, strict=True)])
    if objective == "vocabulary":
        return -scores[right]
    return torch.logsumexp(_by_example(scores, batch), dim=1) - scores[right]


def count_right(scores: Tensor, batch: AnswerBatch) -> int:
    """Return how many examples score the right answer highest (the first of equals counts)."""
    best = _by_example(scores, batch).argmax(dim=1)
    return int((best == torch.tensor([example.right for example in batch.examples])).sum())


def _by_example(scores: Tensor, batch: AnswerBatch) -> Tensor:
    """Scores as (examples, most candidates), −inf where an example has fewer."""
    if batch.is_right_only or any(example.is_free for example in batch.examples):
        raise DataError("the candidates of these rows cannot be compared", needed="two or more candidates for each row")
    width = max(len(example.candidates) for example in batch.examples)
    columns = torch.arange(width)
    counts = torch.tensor([len(example.candidates) for example in batch.examples])
    index = torch.tensor(batch.first_answer)[:, None] + columns[None, :]
    is_real = columns[None, :] < counts[:, None]
    return torch.where(is_real, scores[index.clamp(max=len(scores) - 1)], -torch.inf)


def check_objective(examples: Sequence[Example], objective: Objective) -> None:
    """Refuse the candidates loss for rows without candidates.

    Raises:
        DataError: A row is a free completion.
    """
    if objective == "candidates" and any(example.is_free for example in examples):
        raise DataError(
            "--loss candidates with rows that have no candidate answers",
            needed="labelled rows or a named task",
            next_step="--loss vocabulary",
        )
