"""Keys and values of a text that grows, layer by layer, in buffers with room for more.

Appending a token writes one row; only when a buffer is full it is copied into one half as large again. All tokens are
kept, also where a window hides some. Costs 2 · key heads · width values per token and layer, and the room.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from device_client.model.backends.token_kernels import KeptHeads

_LEAST_ROOM_TOKENS = 32


class LayerKeys:
    """Keys and values of one layer.

    Args:
        window: How many tokens, itself included, a token attends to; None is all before it.
    """

    __slots__ = ("_buffers", "_tokens", "_window")

    def __init__(self, window: int | None = None) -> None:
        self._buffers: tuple[Tensor, Tensor] | None = None
        self._tokens, self._window = 0, window

    @property
    def tokens(self) -> int:
        """Of how many tokens."""
        return self._tokens

    @property
    def keys(self) -> Tensor:
        """Keys (1, key heads, tokens, width), a view."""
        return self._both()[0]

    @property
    def values(self) -> Tensor:
        """Values (1, key heads, tokens, width), a view."""
        return self._both()[1]

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append keys and values of new tokens (1, key heads, new, width), and return those of all."""
        end = self._tokens + keys.shape[2]
        for buffer, new in zip(self._with_room_up_to(end, keys), (keys, values), strict=True):
            buffer[:, self._tokens : end] = new[0]
        self._tokens = end
        return self._both()

    def make_room_for(self, position: int) -> None:
        """Make room for the token at a position of the text, which comes next: a kernel writes it there."""
        self._with_room_up_to(position + 1, self._both()[0])
        self._tokens = position + 1

    def heads(self, position: int) -> KeptHeads:
        """Return the buffers (key heads, capacity, width) as the token at that position of the text sees them."""
        if self._buffers is None:
            raise ValueError("no token yet")
        keys, values = self._buffers
        unseen = 0 if self._window is None else max(0, position + 1 - self._window)
        return KeptHeads(keys, values, unseen, position)

    def cut(self, tokens: int) -> None:
        """Forget what follows so many tokens."""
        self._tokens = min(self._tokens, tokens)

    def drop(self) -> None:
        """Forget everything and give the memory back."""
        self._buffers, self._tokens = None, 0

    def copy(self) -> LayerKeys:
        """Return the same keys and values in buffers of their own."""
        other = LayerKeys(self._window)
        if self._tokens:
            other.extend(*self._both())
        return other

    def _both(self) -> tuple[Tensor, Tensor]:
        if self._buffers is None:
            raise ValueError("no token yet")
        keys, values = self._buffers
        return keys[None, :, : self._tokens], values[None, :, : self._tokens]

    def _with_room_up_to(self, end: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the buffers once they have room for so many tokens."""
        if self._buffers is None or end > self._buffers[0].shape[1]:
            capacity = end + max(_LEAST_ROOM_TOKENS, end // 2)
            keys, values = (torch.empty(like.shape[1], capacity, like.shape[3], dtype=like.dtype) for _ in range(2))
            if self._buffers is not None:
                for new, old in zip((keys, values), self._both(), strict=True):
                    new[:, : self._tokens] = old[0]
            self._buffers = keys, values
        return self._buffers


class TextKeys:
    """Keys and values of one text in every layer.

    Args:
        layers: One for each layer.
    """

    __slots__ = ("layers",)

    def __init__(self, layers: Sequence[LayerKeys]) -> None:
        self.layers = list(layers)

    @property
    def tokens(self) -> int:
        """How many tokens the text has."""
        return self.layers[0].tokens

    def cut(self, tokens: int) -> None:
        """Forget what follows so many tokens."""
        for layer in self.layers:
            layer.cut(tokens)

    def copy(self) -> TextKeys:
        """Return the same text, which grows on its own."""
        return TextKeys([layer.copy() for layer in self.layers])
