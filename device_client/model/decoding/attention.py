"""What a transformers configuration says of attention, where a step of one token must know it beforehand."""

from __future__ import annotations

from typing import Any

_FIXED_ROTATIONS = frozenset({"default", "linear", "llama3", "yarn"})
_WITHOUT_LAYER_TYPES = frozenset({"mistral"})
"""Whose transformers modules do not look at ``layer_types``."""


def steps_are_alike(config: Any) -> bool:
    """Return whether every step computes alike: no rotary frequencies that depend on the length, one kind of layers."""
    stated = getattr(config, "rope_parameters", None) or {}
    tables = [part for part in stated.values() if isinstance(part, dict)] or [stated]  # one for each kind of layer
    rotations = {table.get("rope_type", "default") for table in tables}
    return rotations <= _FIXED_ROTATIONS and len(set(_layer_types(config))) <= 1


def window_of(config: Any) -> int | None:
    """Return how many tokens, itself included, a token attends to; None is all before it."""
    window: int | None = getattr(config, "sliding_window", None)
    return None if "full_attention" in _layer_types(config) else window


def switch_of(config: Any) -> int | None:
    """Return above how many tokens a text has other rotary frequencies from its beginning on; None is never."""
    stated = getattr(config, "rope_parameters", None) or {}
    if stated.get("rope_type") != "longrope":
        return None
    length: int | None = stated.get("original_max_position_embeddings")
    return length or getattr(config, "original_max_position_embeddings", None)


def _layer_types(config: Any) -> list[str]:
    if getattr(config, "model_type", None) in _WITHOUT_LAYER_TYPES:
        return []
    return list(getattr(config, "layer_types", None) or [])
