"""How much of a gradient is computed at once: arithmetic only, so that memory can be planned without torch."""

from __future__ import annotations

TOKENS_AT_ONCE = 128
"""Tokens of a tile when a weight's gradient is gathered."""

PLACES_AT_ONCE = 8192
"""Sensitive places gathered at once: with a tile of tokens 1 Mi products, 4 MiB in float32."""

LOGITS_AT_ONCE = 1 << 22
"""Logits that are differentiated at once, at least those of one position: 16 MiB in float32."""


def positions_at_once(vocabulary: int) -> int:
    """Return how many positions are taken from hidden state to loss and back at once."""
    return max(1, LOGITS_AT_ONCE // vocabulary)
