"""The next token through a model's blocks, again and again at the same place of a text.

What stands before lies in the key-value cache, which is cut back after each token. The head is left out.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from device_client.model.linear import LinearRuntime


class OneToken:
    """Computes one token on each call.

    Args:
        network: A transformers causal language model, plain or with packed layers.
        cached_tokens: How many tokens stand before it.
        runtime: Of a packed model, whose fused product is then used; None decodes, or is a plain model.
    """

    def __init__(self, network: nn.Module, cached_tokens: int, runtime: LinearRuntime | None = None) -> None:
        self._decoder: Any = network.get_decoder()  # type: ignore[operator]
        self._runtime = runtime
        self._cache = DynamicCache(config=network.config)
        device = next(network.parameters()).device
        self._input_ids = torch.ones(1, 1, dtype=torch.int64, device=device)
        self._run(torch.ones(1, cached_tokens, dtype=torch.int64, device=device))

    def __call__(self) -> Tensor:
        """Return the hidden state behind the blocks, compute dtype (hidden,)."""
        with nullcontext() if self._runtime is None else self._runtime.fusing(1):
            hidden = self._run(self._input_ids)
        self._cache.crop(-1)
        return hidden[0, -1]

    @torch.no_grad()
    def _run(self, input_ids: Tensor) -> Tensor:
        hidden: Tensor = self._decoder(
            input_ids=input_ids, past_key_values=self._cache, use_cache=True
        ).last_hidden_state
        return hidden
