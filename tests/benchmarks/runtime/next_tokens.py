"""The next tokens of a text through a model's blocks, without the head.

Several in a row, as decoding is: a token timed right after another model's finds caches that no text finds. The text
grows alike for each way of decoding it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from runtime.stopwatch import Timing
from torch import Tensor, nn

from device_client.model.decoding.choose import eager_decoding
from device_client.model.decoding.decoding import Decoding
from device_client.model.decoding.growing import GrowingDecoding
from device_client.model.linear import LinearRuntime
from device_client.model.sparse_model import SparseModel

TOKENS = 4
"""Of one call."""

_TOKEN = 1


class NextTokens:
    """Computes ``TOKENS`` tokens on each call.

    Args:
        decoding: Of blocks without a head.
        cached_tokens: How many tokens stand before the first one.
        runtime: Of a packed model, whose fused product is then used; None decodes, or is a plain model.
    """

    def __init__(self, decoding: Decoding, cached_tokens: int, runtime: LinearRuntime | None = None) -> None:
        self._decoding, self._runtime = decoding, runtime
        decoding.prefill([_TOKEN] * cached_tokens)

    def __call__(self) -> Tensor:
        """Return the last hidden state behind the blocks, float32 (hidden,)."""
        with nullcontext() if self._runtime is None else self._runtime.fusing(1):
            for _ in range(TOKENS):
                hidden = self._decoding.step(_TOKEN)
        return hidden


def fused(model: SparseModel, cached_tokens: int) -> NextTokens:
    """Return tokens with the backend's fused product, on a CPU as the product decodes them; on CUDA without a graph."""
    network: Any = model.network
    decoding = eager_decoding(network.get_decoder(), nn.Identity(), network.config, model.runtime, 1)
    return NextTokens(decoding, cached_tokens, model.runtime)


def by_modules(network: Any, cached_tokens: int, runtime: LinearRuntime | None = None) -> NextTokens:
    """Return tokens through transformers' modules and its cache, whatever the layers are.

    Args:
        network: A transformers causal language model, plain or with packed layers.
        cached_tokens: How many tokens stand before the first one.
        runtime: As for ``NextTokens``.
    """
    device = next(network.parameters()).device
    decoding = GrowingDecoding(network.get_decoder(), nn.Identity(), network.config, device)
    return NextTokens(decoding, cached_tokens, runtime)


def per_token(timings: Mapping[str, Timing]) -> dict[str, Timing]:
    """Return the timings of one token."""
    return {name: Timing(tuple(each / TOKENS for each in timing.seconds)) for name, timing in timings.items()}
