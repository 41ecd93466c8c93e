"""Text that the model writes itself, for calibration where no other text can be had or may be used.

    x₀ = BOS (the beginning of a chat, where the tokenizer has that as BOS), else an end of text
    x_t ~ p(· | x₀ … x_{t−1})            temperature 1, nothing cut off

Of such text the mean loss of the model is its entropy, and what a quantised model loses more is its KL divergence from
the model, up to chance. Where a text ends the model goes on after the end, as in the packed sequences of C4.
The numbers drawn depend on the seed alone; what they choose, on the logits, whose last bits depend on the processor.
Costs a forward pass of one token for each position of a batch, and a cache of keys and values. Knows nothing about
what the text is for.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from cloud_service.pipeline.model.load_model import LoadedModel
from cloud_service.pipeline.model.tokenization import TextEncoder
from shared.errors import UnsupportedModel
from shared.model_dimensions import dimensions_of
from shared.perturbation import random_generator

_LARGEST_BATCH = 32


@torch.no_grad()
def write_sequences(
    model: LoadedModel,
    encoder: TextEncoder,
    count: int,
    length: int,
    seed: int,
    *,
    cache_bytes: int,
    written: Tensor | None = None,
    after_batch: Callable[[Tensor], None] = lambda _: None,
) -> Tensor:
    """Return sequences that the model samples, int32 (count, length), each beginning with the first token.

    Args:
        model: The model.
        encoder: Its tokenizer.
        count: Number of sequences.
        length: Tokens of each, at most the model's context.
        seed: Of the draws.
        cache_bytes: What keys and values of a batch may take; one sequence at a time takes what it needs.
        written: Sequences of an earlier call that was stopped, as ``after_batch`` received them.
        after_batch: Called with all sequences written so far; may raise to stop.

    Raises:
        UnsupportedModel: There is no token to begin with, or a probability is not finite.
    """
    first = _first_token(encoder)
    draws = random_generator(seed).random((count, length - 1))
    batch = max(1, min(_LARGEST_BATCH, cache_bytes // (length * _cache_bytes_per_token(model))))
    limit = _token_count(encoder)
    model.network.eval()
    done = written if written is not None else torch.empty((0, length), dtype=torch.int32)
    while len(done) < count:
        part = draws[len(done) : len(done) + batch]
        done = torch.cat([done, _write_batch(model, first, limit, part)])
        after_batch(done)
    return done


def _write_batch(model: LoadedModel, first: int, limit: int, draws: np.ndarray) -> Tensor:
    """Return sequences (B, T) for uniform draws (B, T − 1) in [0, 1)."""
    tokens = torch.full((len(draws), 1), first, device=model.device)
    columns, cache = [tokens], None
    for column in torch.from_numpy(draws).T:
        output = model.network(input_ids=tokens, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        # Of p's cumulative sum the first entry above u·(sum): the inverse of the distribution function.
        cumulative = output.logits[:, -1, :limit].double().softmax(-1).cumsum(-1)
        if not bool(cumulative[:, -1].isfinite().all()):
            raise UnsupportedModel(
                "the model's probabilities are not finite", needed="finite logits", param="calibration.text"
            )
        points = column.to(cumulative.device)[:, None] * cumulative[:, -1:]
        tokens = torch.searchsorted(cumulative, points, right=True).clamp_(max=cumulative.shape[1] - 1)
        columns.append(tokens)
    return torch.cat(columns, 1).to(torch.int32).cpu()


def _first_token(encoder: TextEncoder) -> int:
    settings = encoder.settings
    candidates = [settings.bos_token_id, *settings.eos_token_ids]
    first = next((token for token in candidates if token is not None), None)
    if first is None:
        raise UnsupportedModel(
            "the tokenizer has neither a first nor a last token, and the model cannot begin to write",
            needed="a BOS or EOS token",
            next_step="name a .jsonl or .txt file: --calibration-text",
            param="calibration.text",
        )
    return first


def _token_count(encoder: TextEncoder) -> int:
    """Return the number of tokens that are text: a model may have more, which were never trained."""
    return max(encoder.tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def _cache_bytes_per_token(model: LoadedModel) -> int:
    """Return the bytes of keys and values of one position."""
    dimensions = dimensions_of(model.outline.architecture)
    return 2 * dimensions.blocks * dimensions.keys * next(model.network.parameters()).element_size()
