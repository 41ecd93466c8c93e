"""Choose the next token from logits: greedily, or by temperature and nucleus.

    p = softmax(logits / T), restricted to the smallest set of likeliest tokens with Σ p ≥ top_p

Computed in float64 on the host, so one generator state gives one token on every machine. Ties go to the lower id.
References: Holtzman et al. 2020 (nucleus sampling).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


def choose_token(logits: Tensor, temperature: float, top_p: float, generator: np.random.Generator | None) -> int:
    """Return one token id.

    Args:
        logits: float32 (vocabulary,).
        temperature: 0 takes the likeliest.
        top_p: 0 < top_p ≤ 1.
        generator: Needed where temperature > 0; one uniform number is drawn from it.
    """
    scores = logits.double().cpu().numpy()
    if temperature == 0 or generator is None:
        return int(scores.argmax())
    order, probabilities = nucleus(scores / temperature, top_p)
    return int(
        order[np.searchsorted(probabilities.cumsum(), generator.random(), side="right").clip(max=order.size - 1)]
    )


def nucleus(scores: NDArray[np.float64], top_p: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the ids of the nucleus, likeliest first, and their probabilities, which sum to 1."""
    order = np.argsort(-scores, kind="stable")
    weights = np.exp(scores[order] - scores[order[0]])
    cumulative = weights.cumsum()
    size = int(np.searchsorted(cumulative, top_p * cumulative[-1], side="left")) + 1
    kept = weights[:size]
    return order[:size], kept / kept.sum()
