"""Keys and values of the tokens that the next one attends to, in buffers that grow by ``GROWTH_TOKENS``.

What lies before a window is dropped when a buffer grows. Knows nothing about attention.
"""

from __future__ import annotations

import torch
from torch import Tensor

from device_client.model.backends.token_kernels import KeptHeads
from device_client.planning.workload import GROWTH_TOKENS


class KeptTokens:
    """Those of one block, (heads, capacity, size) each.

    Args:
        window: How many tokens, itself included, a token attends to; None is all before it.
    """

    def __init__(self, window: int | None) -> None:
        self._window = window
        self._keys = self._values = torch.empty(0)
        self._dropped = 0

    @property
    def capacity(self) -> int:
        """For how many tokens there is room."""
        return self._keys.shape[1]

    def begin(self, keys: Tensor, values: Tensor) -> None:
        """Begin with the keys and values of a prompt, (heads, tokens, size)."""
        self._dropped = 0
        self._move(keys, values)

    def make_room_for(self, position: int) -> None:
        """Make room for the token at a position of the text, where there is none."""
        if position - self._dropped == self.capacity:
            self._move(self._keys, self._values)

    def heads(self, position: int) -> KeptHeads:
        """Return the buffers as the token at that position of the text sees them."""
        place = position - self._dropped
        return KeptHeads(self._keys, self._values, self._unseen(place), place)

    def _move(self, keys: Tensor, values: Tensor) -> None:
        unseen = self._unseen(keys.shape[1])
        self._dropped += unseen
        self._keys, self._values = _with_room(keys[:, unseen:]), _with_room(values[:, unseen:])

    def _unseen(self, place: int) -> int:
        """Return how many of the kept tokens lie before the window of the token at that place."""
        return 0 if self._window is None else max(0, place + 1 - self._window)


def _with_room(kept: Tensor) -> Tensor:
    """Return a buffer that begins with keys or values (heads, tokens, size), with room for ``GROWTH_TOKENS`` more."""
    heads, tokens, size = kept.shape
    buffer = kept.new_empty(heads, tokens + GROWTH_TOKENS, size)
    buffer[:, :tokens] = kept
    return buffer
