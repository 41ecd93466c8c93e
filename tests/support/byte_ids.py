"""The ids of a text under the byte tokenizer of the tests, written down apart from it."""

from __future__ import annotations

_ORDER = [*range(33, 127), *range(161, 173), *range(174, 256), *range(33), *range(127, 161), 173]
"""Bytes in the order of GPT-2's byte alphabet: what can be printed first."""


def byte_ids(text: str) -> list[int]:
    """Return one id for each byte of the text in UTF-8."""
    return [_ORDER.index(byte) for byte in text.encode()]
