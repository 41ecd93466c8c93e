"""Examples as device-ready micro-batches, laid out once and run as often as wanted.

    example → sequences            one for all candidates of one token each, otherwise one per candidate
    sequences, sorted by length → buckets                                                 bucketing
    all index tensors of all buckets → one tensor → device                                one copy, not waited for

Where every candidate of a row is one token, all of them are read from one sequence, at the last position of the
prompt; otherwise each candidate is a sequence of its own, and the vocabulary loss needs only the right one.

What the device needs (tokens, wanted positions, answer tokens) lies there; what only the host needs (which value
belongs to which answer, which answer to which example) stays on the host. So running a batch again, at the other sign
or in another direction, lays out and copies nothing. Knows nothing about models or losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from device_client.model.token_batch import TokenBatch
from device_client.tasks.bucketing import cut_into_buckets
from shared.tasks.examples import Example


@dataclass(frozen=True, slots=True)
class ScoredSequence:
    """Tokens to run, and what to read from their logits.

    Attributes:
        tokens: The input ids.
        reads: For each wanted position, ascending: its column, and what is read there as
            (token whose log-probability is wanted, index of its answer) pairs, at least one.
    """

    tokens: tuple[int, ...]
    reads: tuple[tuple[int, tuple[tuple[int, int], ...]], ...]


@dataclass(frozen=True, slots=True)
class Bucket:
    """Sequences of similar length that run side by side: a micro-batch.

    Attributes:
        tokens: The sequences and their n wanted positions.
        targets: int64 (n, most tokens read at one position), on the device of ``tokens``: the tokens whose
            log-probabilities are wanted; 0 where a position has fewer.
    """

    tokens: TokenBatch
    targets: Tensor


@dataclass(frozen=True, slots=True)
class AnswerIndex:
    """Which log-probabilities make an answer, and which answers an example; on the host.

    Answers are numbered through the batch. Log-probabilities are numbered through the flattened ``targets`` of all
    buckets, one behind the other.

    Attributes:
        reads: int64 (r,), the number of each log-probability that is a token of an answer.
        read_answers: int64 (r,), whose token it is; the tokens of an answer stand in their order.
        lengths: float64 (answers,), tokens of each answer.
        right: int64 (examples,), each example's right answer.
        candidates: int64 (examples, most candidates), each example's answers; −1 where it has fewer.
    """

    reads: Tensor
    read_answers: Tensor
    lengths: Tensor
    right: Tensor
    candidates: Tensor


@dataclass(frozen=True, slots=True)
class AnswerBatch:
    """Examples laid out for the model once, and scored as often as wanted: all points of a step see the same layout.

    Attributes:
        examples: What is scored.
        buckets: Micro-batches, the shortest sequences first.
        index: Where each answer is read.
        is_right_only: Whether only right answers are scored.
        real_tokens: Tokens of all sequences.
    """

    examples: tuple[Example, ...]
    buckets: tuple[Bucket, ...]
    index: AnswerIndex
    is_right_only: bool
    real_tokens: int

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def computed_tokens(self) -> int:
        """Tokens that one pass over the batch computes, padding included."""
        return sum(rows * columns for rows, columns in (bucket.tokens.shape for bucket in self.buckets))

    @property
    def widest_tokens(self) -> int:
        """Tokens of the largest micro-batch, padding included."""
        return max(rows * columns for rows, columns in (bucket.tokens.shape for bucket in self.buckets))

    @property
    def real_token_share(self) -> float:
        """Real tokens / computed tokens, above 0 … 1; what is missing to 1 is computed for padding."""
        return self.real_tokens / self.computed_tokens

    def to(self, device: torch.device) -> AnswerBatch:
        """Return the batch with its buckets on a device, in one copy that the host does not wait for on CUDA."""
        tensors = [tensor for bucket in self.buckets for tensor in _tensors(bucket)]
        moved = iter(_move_together(tensors, device))
        buckets = tuple(Bucket(TokenBatch(*(next(moved) for _ in range(4))), next(moved)) for _ in self.buckets)
        return replace(self, buckets=buckets)


def lay_out(
    examples: Sequence[Example],
    *,
    micro_batch_rows: int,
    right_only: bool = False,
    device: torch.device | str = "cpu",
) -> AnswerBatch:
    """Return the examples as micro-batches of at most ``micro_batch_rows`` sequences of similar length.

    Args:
        examples: At least one.
        micro_batch_rows: Sequences that the memory allows side by side.
        right_only: Score the right answers alone, which is all that the vocabulary loss needs.
        device: Where the model computes.
    """
    sequences = []
    answer_count = 0
    for example in examples:
        sequences += _sequences(example, answer_count, right_only=right_only)
        answer_count += len(example.candidates)
    batch = lay_out_sequences(examples, sequences, micro_batch_rows=micro_batch_rows, right_only=right_only)
    return batch.to(torch.device(device))


def lay_out_sequences(
    examples: Sequence[Example], sequences: Sequence[ScoredSequence], *, micro_batch_rows: int, right_only: bool
) -> AnswerBatch:
    """Return sequences that read the examples' answers as micro-batches on the host.

    Args:
        examples: At least one; their answers are numbered through in this order.
        sequences: In any order; sequences of one length keep theirs.
        micro_batch_rows: Sequences that the memory allows side by side.
        right_only: Whether the sequences read the right answers alone.
    """
    by_length = sorted(sequences, key=lambda sequence: len(sequence.tokens))
    lengths = [len(sequence.tokens) for sequence in by_length]
    cuts = cut_into_buckets(lengths, most_rows=micro_batch_rows)
    parts = [by_length[first:last] for first, last in cuts]
    buckets = tuple(Bucket(token_batch(part), _targets(part)) for part in parts)
    index = _index(examples, parts, [bucket.targets.shape[1] for bucket in buckets])
    return AnswerBatch(tuple(examples), buckets, index, is_right_only=right_only, real_tokens=sum(lengths))


def token_batch(sequences: Sequence[ScoredSequence]) -> TokenBatch:
    """Return the sequences side by side, padded on the right with id 0."""
    width = max(len(sequence.tokens) for sequence in sequences)
    padded = [sequence.tokens + (0,) * (width - len(sequence.tokens)) for sequence in sequences]
    lengths = torch.tensor([len(sequence.tokens) for sequence in sequences])
    attention_mask = (torch.arange(width) < lengths[:, None]).long()
    wanted = [(row, column) for row, sequence in enumerate(sequences) for column, _ in sequence.reads]
    rows, columns = torch.tensor(wanted).T.contiguous()
    return TokenBatch(torch.tensor(padded), attention_mask, rows, columns)


def _sequences(example: Example, first_answer: int, *, right_only: bool) -> list[ScoredSequence]:
    wanted = [example.right] if right_only else range(len(example.candidates))
    start = len(example.prompt) - 1
    if example.has_single_token_candidates:
        pairs = tuple((example.candidates[index][0], first_answer + index) for index in wanted)
        return [ScoredSequence(example.prompt, ((start, pairs),))]
    return [
        ScoredSequence(
            example.prompt + candidate[:-1],
            tuple((start + position, ((token, first_answer + index),)) for position, token in enumerate(candidate)),
        )
        for index in wanted
        for candidate in [example.candidates[index]]
    ]


def _targets(sequences: Sequence[ScoredSequence]) -> Tensor:
    tokens = [[token for token, _ in pairs] for sequence in sequences for _, pairs in sequence.reads]
    width = max(map(len, tokens))
    return torch.tensor([row + [0] * (width - len(row)) for row in tokens])


def _index(
    examples: Sequence[Example], parts: Sequence[Sequence[ScoredSequence]], widths: Sequence[int]
) -> AnswerIndex:
    reads: list[int] = []
    read_answers: list[int] = []
    begin = 0
    for part, width in zip(parts, widths, strict=True):
        for pairs in (pairs for sequence in part for _, pairs in sequence.reads):
            reads += range(begin, begin + len(pairs))
            read_answers += [answer for _, answer in pairs]
            begin += width
    candidates = _candidates(examples)
    return AnswerIndex(
        torch.tensor(reads),
        torch.tensor(read_answers),
        torch.tensor([len(c) for example in examples for c in example.candidates], dtype=torch.float64),
        torch.tensor([row[example.right] for row, example in zip(candidates, examples, strict=True)]),
        torch.tensor(candidates),
    )


def _candidates(examples: Sequence[Example]) -> list[list[int]]:
    most = max(len(example.candidates) for example in examples)
    rows, count = [], 0
    for example in examples:
        answers = range(count, count + len(example.candidates))
        rows.append([*answers, *[-1] * (most - len(answers))])
        count += len(answers)
    return rows


def _tensors(bucket: Bucket) -> tuple[Tensor, ...]:
    tokens = bucket.tokens
    return tokens.input_ids, tokens.attention_mask, tokens.logit_rows, tokens.logit_columns, bucket.targets


def _move_together(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Copy int64 tensors to a device as one; from pinned memory to CUDA, so that the host goes on meanwhile."""
    is_cuda = device.type == "cuda"
    together = torch.cat([tensor.flatten() for tensor in tensors])
    moved = (together.pin_memory() if is_cuda else together).to(device, non_blocking=is_cuda)
    parts = torch.split(moved, [tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
