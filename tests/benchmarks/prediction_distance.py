"""How far a network's predictions are from a reference's: divergence and perplexity from one pass over a text.

    KL = 1/M · Σ_t Σ_v p_t(v) (log p_t(v) − log q_t(v))        p the reference, q the network; nats per token

Of the reference only what enters the output head is kept, float32 (tokens, hidden_size), and its predictions are made
again from it when they are compared: the head is the same in both. 200 documents of C4 are 200 MB that way for 576
hidden units, where their log-probabilities would be 17 GB.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

_ROWS = 256


@dataclass(frozen=True)
class Distance:
    """What one pass finds.

    Attributes:
        kl: Mean divergence from the reference, nats per token.
        perplexity: Of the network on the text.
        tokens: Predicted tokens.
    """

    kl: float
    perplexity: float
    tokens: int


@torch.no_grad()
def before_head(network: nn.Module, window: list[int]) -> Tensor:
    """Return what enters the head at each position that predicts a token of the window, float32 (T − 1, hidden)."""
    outputs = network.base_model(input_ids=torch.tensor([window]), use_cache=False)  # type: ignore[operator]
    hidden: Tensor = outputs.last_hidden_state[0, :-1]
    return hidden.to(torch.float32)


def reference_states(network: nn.Module, windows: list[list[int]]) -> list[Tensor]:
    """Return ``before_head`` of every window, for ``distance``."""
    return [before_head(network, window) for window in windows]


@torch.no_grad()
def distance(network: nn.Module, windows: list[list[int]], reference: list[Tensor]) -> Distance:
    """Return how far the network is from the one whose states are given, on the same windows."""
    head = network.get_output_embeddings()  # type: ignore[operator]
    divergence, loss, tokens = 0.0, 0.0, 0
    for window, expected in zip(windows, reference, strict=True):
        for states, kept, targets in _stretches(before_head(network, window), expected, torch.tensor(window[1:])):
            log_q = head(states).log_softmax(dim=1)
            log_p = head(kept).log_softmax(dim=1)
            divergence += float((log_p.exp() * (log_p - log_q)).sum(dtype=torch.float64))
            loss += float(functional.nll_loss(log_q, targets, reduction="sum"))
            tokens += len(targets)
    return Distance(divergence / tokens, math.exp(loss / tokens), tokens)


def _stretches(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    yield from zip(*(torch.split(tensor, _ROWS) for tensor in tensors), strict=True)
