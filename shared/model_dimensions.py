"""The dimensions of a model, from its configuration alone, whatever its family calls them.

    queries = heads · head_width        keys = key_heads · head_width        MLP width = stated, or widening · hidden

A key that is absent has the default of the family's transformers class; one that is null has the usual meaning: as many
key heads as heads, and heads that share the hidden size. Costs nothing. Knows nothing about files or weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shared.architecture import family_of
from shared.errors import UnsupportedModel
from shared.model_families import ModelFamily


@dataclass(frozen=True, slots=True)
class Dimensions:
    """Dimensions of a decoder.

    Attributes:
        hidden: Width of a hidden state.
        intermediate: Width of the MLP.
        blocks: Number of decoder blocks.
        heads: Query heads.
        key_heads: Key and value heads.
        head_width: Width of a head.
        vocabulary: Rows of the embedding.
        context: Positions that the model was made for.
    """

    hidden: int
    intermediate: int
    blocks: int
    heads: int
    key_heads: int
    head_width: int
    vocabulary: int
    context: int

    @property
    def queries(self) -> int:
        """Width of all queries of a token."""
        return self.heads * self.head_width

    @property
    def keys(self) -> int:
        """Width of all keys of a token."""
        return self.key_heads * self.head_width


def dimensions_of(config: Mapping[str, Any]) -> Dimensions:
    """Return the dimensions of a configuration that ``safe_config`` returned.

    Raises:
        UnsupportedModel: A dimension is missing or is not a positive whole number; the message names its key.
    """
    family = family_of(config, allow_untested=True)
    hidden, heads = (dimension(config, family, key) for key in ("hidden_size", "num_attention_heads"))
    widened = None if family.widening is None else family.widening * hidden
    return Dimensions(
        hidden=hidden,
        intermediate=dimension(config, family, "intermediate_size", widened),
        blocks=dimension(config, family, "num_hidden_layers"),
        heads=heads,
        key_heads=dimension(config, family, "num_key_value_heads", heads),
        head_width=dimension(config, family, "head_dim", max(1, hidden // heads)),
        vocabulary=dimension(config, family, "vocab_size"),
        context=dimension(config, family, "max_position_embeddings"),
    )


def dimension(config: Mapping[str, Any], family: ModelFamily, usual_name: str, if_null: int | None = None) -> int:
    """Return one dimension of a configuration.

    Args:
        config: Reduced by ``safe_config``.
        family: Its family.
        usual_name: What most families call the dimension.
        if_null: Its value where the configuration does not state it.

    Raises:
        UnsupportedModel: It is not a positive whole number, or is not stated and ``if_null`` is None.
    """
    key = family.dimension_keys.get(usual_name, usual_name)
    stated = config.get(key, family.defaults.get(key))
    value = if_null if stated is None else stated
    if type(value) is not int or value < 1:
        raise UnsupportedModel(
            f"config.json: {key} is {repr(value)[:80]}",
            needed="a positive whole number",
            next_step="choose another checkpoint or repair it",
            param="model",
        )
    return value


def is_tied(config: Mapping[str, Any]) -> bool:
    """Return whether the output matrix is the embedding."""
    family = family_of(config, allow_untested=True)
    return config.get("tie_word_embeddings", family.defaults.get("tie_word_embeddings", False)) is True
