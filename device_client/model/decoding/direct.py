"""Decode one token at a time through a block's weights themselves, on a CPU.

transformers' modules serve any number of tokens; for one, what they do between two products (some 50 small operations
per block, in caches that the weights have just swept) takes a sixth of the time. Here a token is one call of the
backend's kernels (``whole_step``) where it has such, else ten calls for each block (``stepwise``).

Keys and values lie in buffers that grow, where transformers' cache copies them for every token. The prompt goes through
transformers' modules. Numbers are rounded where those round them, attention's at its end alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from device_client.model.backends.token_kernels import TokenKernels
from device_client.model.decoding.attention import steps_are_alike, window_of
from device_client.model.decoding.block_parts import is_packed
from device_client.model.decoding.cache import empty_cache, forget
from device_client.model.decoding.kept_tokens import KeptTokens
from device_client.model.decoding.token_steps import TokenSteps
from device_client.model.linear import LinearRuntime
from shared.model_families import FAMILIES


def can_be_direct(decoder: Any, config: Any) -> bool:
    """Return whether a transformers decoder consists of blocks that are known here, all their products packed alone."""
    family = FAMILIES.get(config.model_type)
    is_known = family is not None and family.is_llama_like
    return is_known and steps_are_alike(config) and all(map(is_packed, decoder.layers))


class DirectDecoding:
    """Decodes one text at a time; a new ``prefill`` begins another one.

    Args:
        decoder: A transformers decoder that ``can_be_direct``.
        head: Hidden states to logits.
        config: The decoder's transformers configuration.
        runtime: What its packed layers share, at one point.
        kernels: The runtime's backend's.
    """

    def __init__(
        self, decoder: Any, head: nn.Module, config: Any, runtime: LinearRuntime, kernels: TokenKernels
    ) -> None:
        self._decoder, self._head, self._runtime = decoder, head, runtime
        self._kept = [KeptTokens(window_of(config)) for _ in decoder.layers]
        self._steps = TokenSteps(decoder, head, runtime, kernels)
        self._length = 0

    @property
    def kept_tokens(self) -> int:
        """For how many tokens it holds keys and values, or room for them."""
        return max(kept.capacity for kept in self._kept)

    @torch.no_grad()
    def prefill(self, token_ids: Sequence[int]) -> Tensor:
        """Begin a text and return the logits after its last token, float32 (vocabulary,)."""
        self._length = 0  # an interrupted prompt leaves no text
        cache = empty_cache(self._decoder)  # keeps all tokens, also where a window hides some
        outputs = self._decoder(input_ids=torch.tensor([list(token_ids)]), past_key_values=cache, use_cache=True)
        for kept, layer in zip(self._kept, cache.layers, strict=True):
            kept.begin(layer.keys[0], layer.values[0])
            forget(layer)
        self._length = len(token_ids)
        logits: Tensor = self._head(outputs.last_hidden_state[:, -1])
        return logits[0].float()

    @torch.no_grad()
    def step(self, token_id: int) -> Tensor:
        """Append a token and return the logits after it, float32 (vocabulary,).

        Raises:
            ValueError: There is no prompt yet, or the runtime is at several points.
        """
        if self._length == 0 or self._runtime.values.points != 1:
            found = f"a step after {self._length} tokens at {self._runtime.values.points} points"
            raise ValueError(f"{found}; needed a prompt, and one point")
        logits = self._steps.take(token_id, self._length, self._kept)
        self._length += 1
        return logits
