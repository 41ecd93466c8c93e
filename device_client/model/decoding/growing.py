"""Decode one token at a time over keys and values that grow with the text, by transformers' own cache.

What serves on a CPU, where memory for a whole context from the start would cost more than the growing of it. Where a
text grows past the length at which its rotary frequencies change, all of it is computed again, as transformers does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from device_client.model.decoding.attention import switch_of
from device_client.model.decoding.cache import empty_cache
from device_client.model.prefix import Prefix


class GrowingDecoding:
    """Decodes with a cache that grows.

    Args:
        decoder: A transformers decoder.
        head: Hidden states to logits.
        config: The decoder's transformers configuration.
        device: Where it computes.
        prefix: Stands in front of the text; None puts nothing there.
    """

    def __init__(
        self, decoder: Any, head: Any, config: Any, device: torch.device, prefix: Prefix | None = None
    ) -> None:
        self._decoder, self._head, self._config, self._device = decoder, head, config, device
        self._prefix, self._in_front = prefix, prefix.length if prefix else 0
        self._switch = switch_of(config)
        self._text: list[int] = []
        self._cache: Any = None

    def prefill(self, token_ids: Sequence[int]) -> Tensor:
        """Begin a text and return the logits after its last token, float32 (vocabulary,)."""
        self._cache = empty_cache(self._decoder, self._config)
        if self._prefix is not None:
            self._prefix.begin(self._cache)
        self._text = list(token_ids)
        return self._append(token_ids)

    def step(self, token_id: int) -> Tensor:
        """Append a token and return the logits after it, float32 (vocabulary,)."""
        if self._in_front + len(self._text) == self._switch:
            return self.prefill([*self._text, token_id])
        self._text.append(token_id)
        return self._append([token_id])

    @torch.no_grad()
    def _append(self, token_ids: Sequence[int]) -> Tensor:
        input_ids = torch.tensor([list(token_ids)], dtype=torch.int64, device=self._device)
        outputs = self._decoder(input_ids=input_ids, past_key_values=self._cache, use_cache=True)
        logits: Tensor = self._head(outputs.last_hidden_state[:, -1])
        return logits[0].float()
