"""What decodes a text, however it keeps keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class Decoding(Protocol):
    """Decodes one text; a new ``prefill`` begins another one."""

    def prefill(self, token_ids: Sequence[int]) -> Tensor:
        """Begin a text and return the logits after its last token, float32 (vocabulary,)."""

    def step(self, token_id: int) -> Tensor:
        """Append a token and return the logits after it, float32 (vocabulary,), valid until the next step."""
