"""Keys and values of one text in one block, as what computes its next token sees them."""

from __future__ import annotations

from typing import Protocol

from device_client.model.backends.token_kernels import KeptHeads


class GrowingHeads(Protocol):
    """They lie in buffers that the token's own keys and values are written into."""

    def make_room_for(self, position: int) -> None:
        """Make room for the token at a position of the text, which comes next."""

    def heads(self, position: int) -> KeptHeads:
        """Return the buffers as the token at that position of the text sees them."""
