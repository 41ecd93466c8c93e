"""Compares a config.json's numbers with each other and with the weights, before anything is built from them.

    heads · head_dim = width of the queries        key heads divide heads        blocks = blocks among the weights
    rotary frequencies are scaled in a way that is known, and what that way needs is there

A network of 100,000 layers takes minutes and gigabytes even without weights; here it costs some milliseconds to refuse.
Shapes of single weights are compared with the network itself, later. Imports no torch. Knows nothing about files.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from cloud_service.pipeline.model.block_names import block_index, decoder_path
from cloud_service.pipeline.model.weight_files import foreign_names, unsupported
from shared.architecture import family_of
from shared.model_dimensions import Dimensions, dimensions_of
from shared.model_families import ModelFamily

_SMALLEST_CONTEXT = 8
_LARGEST = {
    "num_hidden_layers": 1024,
    "num_attention_heads": 4096,
    "num_key_value_heads": 4096,
    "head_dim": 4096,
    "hidden_size": 1 << 18,
    "word_embed_proj_dim": 1 << 18,
    "intermediate_size": 1 << 20,
    "vocab_size": 1 << 22,
    "max_position_embeddings": 1 << 25,
}
"""Several times what the largest published models of any family have."""

_ROPE_NEEDS = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
    "su": ("short_factor", "long_factor"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
"""What transformers reads of each way to scale rotary frequencies."""


def check_config(config: Mapping[str, Any], weights: Iterable[str] = ()) -> None:
    """Refuse a configuration whose numbers cannot all be true.

    Args:
        config: Reduced by ``safe_config``.
        weights: Names of all stored weights; none compares the configuration with itself alone.

    Raises:
        UnsupportedModel: A number is missing, not positive, larger than any model's, or contradicts another one or the
            weights, or rotary frequencies are scaled in an unknown way; the message names what it is about.
    """
    family = family_of(config, allow_untested=True)
    dimensions = dimensions_of(config)
    _check_blocks(dimensions, family, list(weights))
    _check_sizes(config, family)
    if dimensions.context < _SMALLEST_CONTEXT:
        key = family.dimension_keys.get("max_position_embeddings", "max_position_embeddings")
        raise unsupported(f"config.json: {key} is {dimensions.context}", f"at least {_SMALLEST_CONTEXT}")
    _check_heads(dimensions, family, has_own_width=_stated(config, family, "head_dim") is not None)
    for key in ("rope_scaling", "rope_parameters"):
        _check_rotation(key, config.get(key), family)


def _stated(config: Mapping[str, Any], family: ModelFamily, usual_name: str) -> Any:
    key = family.dimension_keys.get(usual_name, usual_name)
    return config.get(key, family.defaults.get(key))


def _check_sizes(config: Mapping[str, Any], family: ModelFamily) -> None:
    for usual_name, largest in _LARGEST.items():
        value = _stated(config, family, usual_name)
        if type(value) is int and value > largest:
            key = family.dimension_keys.get(usual_name, usual_name)
            raise unsupported(f"config.json: {key} is {repr(value)[:80]}", f"at most {largest}")


def _check_blocks(dimensions: Dimensions, family: ModelFamily, names: Collection[str]) -> None:
    path = decoder_path(family, names)
    stored = {index for name in names if (index := block_index(name, path)) is not None}
    if names and not stored:
        about, needed = foreign_names(names)
        raise unsupported(f"the weights hold no block of config.json's {dimensions.blocks}; {about}", needed)
    if names and dimensions.blocks > len(stored):
        key = family.dimension_keys.get("num_hidden_layers", "num_hidden_layers")
        raise unsupported(
            f"config.json: {key} is {dimensions.blocks}, and the weights hold {len(stored)} layers",
            "a config.json that describes the weights",
        )


def _check_heads(dimensions: Dimensions, family: ModelFamily, *, has_own_width: bool) -> None:
    hidden, heads, key_heads = dimensions.hidden, dimensions.heads, dimensions.key_heads
    if not has_own_width and hidden % heads:
        raise unsupported(
            f"config.json: {heads} num_attention_heads do not divide hidden_size {hidden}", "heads of equal width"
        )
    if family.has_rotary_embedding and family.is_tested and dimensions.head_width % 2:
        raise unsupported(
            f"config.json: heads of width {dimensions.head_width}", "an even width: positions turn pairs of numbers"
        )
    if heads % key_heads:
        raise unsupported(
            f"config.json: {key_heads} num_key_value_heads do not divide {heads} num_attention_heads",
            "groups of equal size",
        )


def _check_rotation(key: str, stated: object, family: ModelFamily) -> None:
    if not isinstance(stated, dict) or not family.is_tested:
        return
    nested = {name: part for name, part in stated.items() if isinstance(part, dict)}
    for name, part in nested.items():  # one table for each kind of layer
        _check_rotation(f"{key}.{name}", part, family)
    kind = stated.get("rope_type", stated.get("type", "default"))
    if not isinstance(kind, str) or kind not in family.rope_types:
        raise unsupported(
            f"config.json: {key} has the type {repr(kind)[:80]}", f"one of {', '.join(sorted(family.rope_types))}"
        )
    for needed in _ROPE_NEEDS.get(kind, ()):
        if stated.get(needed) is None:
            raise unsupported(f"config.json: {key} of type {kind} has no {needed}", ", ".join(_ROPE_NEEDS[kind]))
