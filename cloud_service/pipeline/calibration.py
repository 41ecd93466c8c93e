"""Calibration tokens: the N sequences that the Fisher diagonal is averaged over.

    pool       the first max(1000, 8·N) documents after the held-out ones
    stream     the pool in random order, each document preceded by BOS (or, in a model without BOS, by EOS)
    sequences  N windows of T tokens cut from the stream one after another, each beginning with BOS

Packing like this gives every sequence the same length, so that each example weighs the same number of tokens, and
uses short documents too. The choice depends on the text, the seed, N and T alone. Knows nothing about models.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from cloud_service.pipeline.tokenization import TextEncoder
from shared.api import CalibrationSpec
from shared.bundle.digest import digest_of_bytes
from shared.errors import DataError
from shared.perturbation import random_generator

_SMALLEST_POOL = 1000


def calibration_sequences(
    documents: Iterable[str], encoder: TextEncoder, spec: CalibrationSpec, *, held_out: int
) -> Tensor:
    """Return the calibration tokens, int32 (N, T).

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
    return torch.tensor(sequences, dtype=torch.int32)


def tokens_digest(sequences: Tensor) -> str:
    """Return the digest of the tokens: int32 little-endian, row-major."""
    return digest_of_bytes(sequences.to(torch.int32).cpu().numpy().astype("<i4").tobytes())


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
