"""Calibration tokens: the N sequences that the Fisher diagonal is averaged over.

Of a text:

    pool       the first max(1000, 8·N) documents after the held-out ones
    stream     the pool in random order, each document preceded by BOS (or, in a model without BOS, by EOS)
    sequences  N windows of T tokens cut from the stream one after another, each beginning with BOS; all of it predicted

Packing like this gives every sequence the same length, so that each example weighs the same number of tokens, and
uses short documents too.

Of task rows:

    sequences  N rows' prompts and true answers (``calibration_rows``), padded; only the answers are predicted

The choice depends on the text or rows, the seed, N and T alone. Knows nothing about models.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cloud_service.pipeline.calibration.documents import read_documents, read_rows
from cloud_service.pipeline.calibration.rows import calibration_examples
from cloud_service.pipeline.model.tokenization import TextEncoder
from cloud_service.sources import SourcePolicy, TextSource
from shared.api import CalibrationSpec
from shared.bundle.digest import digest_of_bytes
from shared.errors import DataError
from shared.perturbation import random_generator
from shared.tasks.examples import Example

_SMALLEST_POOL = 1000


@dataclass(frozen=True, slots=True)
class Calibration:
    """N sequences; of sequence n, the tokens from ``starts[n]`` to before ``ends[n]`` are predicted.

    Attributes:
        tokens: Token ids, int32 (N, T); after ``ends`` padded with 0.
        starts: First predicted position, at least 1, int32 (N,).
        ends: Number of tokens of the sequence, int32 (N,).
    """

    tokens: Tensor
    starts: Tensor
    ends: Tensor

    @classmethod
    def of_windows(cls, tokens: Tensor) -> Calibration:
        """Return full sequences (N, T) of which everything but the first token is predicted."""
        count, length = tokens.shape
        starts = torch.ones(count, dtype=torch.int32)
        return cls(tokens.to(torch.int32), starts, torch.full((count,), length, dtype=torch.int32))

    @classmethod
    def of_examples(cls, examples: Sequence[Example]) -> Calibration:
        """Return prompts with their right answers, of which the answers are predicted."""
        sequences = [example.prompt + example.candidates[example.right] for example in examples]
        tokens = torch.zeros(len(sequences), max(map(len, sequences)), dtype=torch.int32)
        for row, sequence in zip(tokens, sequences, strict=True):
            row[: len(sequence)] = torch.tensor(sequence, dtype=torch.int32)
        starts = torch.tensor([len(example.prompt) for example in examples], dtype=torch.int32)
        return cls(tokens, starts, torch.tensor([len(sequence) for sequence in sequences], dtype=torch.int32))

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Calibration:
        """Return what ``to_tensors`` described."""
        return cls(tensors["tokens"], tensors["starts"], tensors["ends"])

    def to_tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name, for a checkpoint."""
        return {"tokens": self.tokens, "starts": self.starts, "ends": self.ends}

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def is_predicted_throughout(self) -> bool:
        """Whether every sequence is full and all but its first token is predicted, as of a text."""
        return bool((self.starts == 1).all() and (self.ends == self.tokens.shape[1]).all())

    def part(self, rows: slice) -> Calibration:
        """Return some of the sequences."""
        return Calibration(self.tokens[rows], self.starts[rows], self.ends[rows])


def read_calibration(
    source: TextSource,
    encoder: TextEncoder,
    spec: CalibrationSpec,
    *,
    policy: SourcePolicy,
    model_type: str,
    held_out: int = 0,
) -> Calibration:
    """Return the calibration that ``spec`` describes, from where ``sources.locate_calibration`` found it.

    Args:
        source: The text or rows.
        encoder: The model's tokenizer.
        spec: N, T, the seed, and what the rows are.
        policy: What may be read.
        model_type: The model's family: it decides the prompts of a named task.
        held_out: Documents at the start of a text that are left for the evaluation.

    Raises:
        InvalidRequest: A template or label words are given for rows without labels.
        DataError: The text or rows are unusable, or too few; the message says how many there are.
        NetworkError: C4 cannot be reached.
    """
    if source.task is None or source.path is None:
        return calibration_sequences(read_documents(source, policy), encoder, spec, held_out=held_out)
    records = read_rows(source.path)
    return Calibration.of_examples(calibration_examples(records, encoder, spec, model_type=model_type))


def calibration_sequences(
    documents: Iterable[str], encoder: TextEncoder, spec: CalibrationSpec, *, held_out: int
) -> Calibration:
    """Return N windows of T tokens of a text.

    Args:
        documents: The text.
        encoder: The model's tokenizer.
        spec: N, T and the seed; T is shortened to the model's context.
        held_out: Documents at the start that are left for the evaluation.

    Raises:
        DataError: The text is empty, or makes fewer than N sequences; the message says how many.
    """
    length = min(spec.tokens_per_sequence, encoder.settings.context_length)
    pool_size = max(_SMALLEST_POOL, 8 * spec.sequences)
    pool = list(itertools.islice(documents, held_out, held_out + pool_size))
    order = random_generator(spec.seed).permutation(len(pool))
    stream = _token_stream((pool[index] for index in order), encoder)
    sequences = list(itertools.islice(_windows(stream, encoder.bos, length), spec.sequences))
    if len(sequences) < spec.sequences:
        raise _too_little_text(len(sequences), length, len(pool), held_out, spec)
    return Calibration.of_windows(torch.tensor(sequences, dtype=torch.int32))


def tokens_digest(calibration: Calibration) -> str:
    """Return the digest of the tokens, int32 little-endian, row-major; of rows, of ``starts`` and ``ends`` before."""
    if calibration.is_predicted_throughout:
        return digest_of_bytes(_little_endian(calibration.tokens))
    parts = (calibration.starts, calibration.ends, calibration.tokens)
    return digest_of_bytes(b"".join(_little_endian(part) for part in parts))


def _little_endian(values: Tensor) -> bytes:
    return values.to(torch.int32).cpu().numpy().astype("<i4").tobytes()


def _token_stream(documents: Iterable[str], encoder: TextEncoder) -> Iterator[int]:
    separator = encoder.bos or encoder.settings.eos_token_ids[:1]
    for document in documents:
        yield from separator
        yield from encoder.encode(document)


def _windows(stream: Iterator[int], bos: list[int], length: int) -> Iterator[list[int]]:
    while True:
        window = list(bos)
        for token in stream:
            if window == bos and [token] == bos:
                continue
            window.append(token)
            if len(window) == length:
                break
        if len(window) < length:
            return
        yield window


def _too_little_text(made: int, length: int, pool: int, held_out: int, spec: CalibrationSpec) -> DataError:
    if not pool:
        found = f"the calibration text has no document after the {held_out} held-out ones"
    else:
        found = f"the calibration text makes {made} sequences of {length} tokens ({pool} documents)"
    return DataError(
        found,
        needed=f"{spec.sequences} sequences",
        next_step="give a longer text, fewer or shorter sequences, or hold out fewer documents",
        param="calibration.text",
    )
