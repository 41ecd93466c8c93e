"""Keys and values of a text that grows, layer by layer, in buffers with room for more.

Appending a token writes one row; only when a buffer is full it is copied into one half as large again. All tokens are
kept, also where a window hides some. Costs 2 · key heads · width values per token and layer, and the room.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_LEAST_ROOM_TOKENS = 32


class LayerKeys:
    """Keys and values of one layer."""

    __slots__ = ("_buffers", "_tokens")

    def __init__(self) -> None:
        self._buffers: tuple[Tensor, Tensor] | None = None
        self._tokens = 0

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
        if self._buffers is None or end > self._buffers[0].shape[2]:
            room = max(_LEAST_ROOM_TOKENS, end // 2)
            self._buffers = self._with_room(keys, end + room), self._with_room(values, end + room, of=1)
        for buffer, new in zip(self._buffers, (keys, values), strict=True):
            buffer[:, :, self._tokens : end] = new
        self._tokens = end
        return self._both()

    def cut(self, tokens: int) -> None:
        """Forget what follows so many tokens."""
        self._tokens = min(self._tokens, tokens)

    def drop(self) -> None:
        """Forget everything and give the memory back."""
        self._buffers, self._tokens = None, 0

    def copy(self) -> LayerKeys:
        """Return the same keys and values in buffers of their own."""
        other = LayerKeys()
        if self._tokens:
            other.extend(*self._both())
        return other

    def _both(self) -> tuple[Tensor, Tensor]:
        if self._buffers is None:
            raise ValueError("no token yet")
        keys, values = self._buffers
        return keys[:, :, : self._tokens], values[:, :, : self._tokens]

    def _with_room(self, like: Tensor, capacity: int, of: int = 0) -> Tensor:
        buffer = torch.empty(1, like.shape[1], capacity, like.shape[3], dtype=like.dtype)
        if self._buffers is not None:
            buffer[:, :, : self._tokens] = self._buffers[of][:, :, : self._tokens]
        return buffer


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
