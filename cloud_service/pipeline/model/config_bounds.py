"""Compares a config.json's numbers with each other and with the weights, before anything is built from them.

    heads · head_dim = width of the queries        key heads divide heads        blocks = blocks among the weights

A network of 100,000 layers takes minutes and gigabytes even without weights; here it costs some milliseconds to refuse.
Shapes of single weights are compared with the network itself, later. Imports no torch. Knows nothing about files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from cloud_service.pipeline.model.weight_files import unsupported
from shared.architecture import family_of

_SMALLEST_CONTEXT = 8
_LARGEST = {
    "num_hidden_layers": 1024,
    "num_attention_heads": 4096,
    "num_key_value_heads": 4096,
    "head_dim": 4096,
    "hidden_size": 1 << 18,
    "word_embed_proj_dim": 1 << 18,
    "intermediate_size": 1 << 20,
    "ffn_dim": 1 << 20,
    "vocab_size": 1 << 22,
    "max_position_embeddings": 1 << 25,
}
"""Several times what the largest published models of any family have."""


def dimension(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """Return a number of the configuration, or ``default`` where it is absent or null.

    Raises:
        UnsupportedModel: It is not a positive whole number, or none is there and there is no default.
    """
    value = default if config.get(key) is None else config[key]
    if type(value) is not int or value < 1:
        raise unsupported(f"config.json: {key} is {_short(value)}", "a positive whole number")
    return value


def check_config(config: Mapping[str, Any], weights: Iterable[str] = ()) -> None:
    """Refuse a configuration whose numbers cannot all be true.

    Args:
        config: Reduced by ``safe_config``.
        weights: Names of all stored weights; none compares the configuration with itself alone.

    Raises:
        UnsupportedModel: A number is missing, not positive, larger than any model's, or contradicts another one or the
            weights; the message names both.
    """
    family = family_of(dict(config))
    layers = dimension(config, "num_hidden_layers")
    names = list(weights)
    stored = _stored_blocks(names, family.decoder_blocks)
    if names and layers > len(stored):
        raise unsupported(
            f"config.json: num_hidden_layers is {_short(layers)}, and the weights hold {len(stored)} layers",
            "a config.json that describes the weights",
        )
    for key in (
        "vocab_size",
        "max_position_embeddings",
        "ffn_dim" if family.model_type == "opt" else "intermediate_size",
    ):
        dimension(config, key)
    for key, largest in _LARGEST.items():
        if config.get(key) is not None and (value := dimension(config, key)) > largest:
            raise unsupported(f"config.json: {key} is {_short(value)}", f"at most {largest}")
    if (context := dimension(config, "max_position_embeddings")) < _SMALLEST_CONTEXT:
        raise unsupported(f"config.json: max_position_embeddings is {context}", f"at least {_SMALLEST_CONTEXT}")
    _check_heads(config, has_rotary_embedding=family.model_type != "opt")


def _short(value: object) -> str:
    return repr(value)[:80]


def _check_heads(config: Mapping[str, Any], *, has_rotary_embedding: bool) -> None:
    hidden, heads = dimension(config, "hidden_size"), dimension(config, "num_attention_heads")
    if config.get("head_dim") is None and hidden % heads:
        raise unsupported(
            f"config.json: {heads} num_attention_heads do not divide hidden_size {hidden}", "heads of equal width"
        )
    width = dimension(config, "head_dim", hidden // heads)
    if has_rotary_embedding and width % 2:
        raise unsupported(f"config.json: heads of width {width}", "an even width: positions turn pairs of numbers")
    key_heads = dimension(config, "num_key_value_heads", heads)
    if heads % key_heads:
        raise unsupported(
            f"config.json: {key_heads} num_key_value_heads do not divide {heads} num_attention_heads",
            "groups of equal size",
        )


def _stored_blocks(names: Iterable[str], decoder_blocks: str) -> set[str]:
    """Return the indices of the decoder blocks among the names, with and without the base model's prefix."""
    pattern = re.compile(rf"(?:\w+\.)?{re.escape(decoder_blocks.partition('.')[2])}\.(\d{{1,6}})\.")
    return {match[1] for name in names if (match := pattern.match(name))}
