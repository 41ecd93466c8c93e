"""What a Llama-like network computes, read from a bundle's configuration without transformers.

A configuration that says anything that is not known here, or leaves out what transformers' classes fill in differently,
has no shape, and transformers' own network serves it. Costs nothing. Knows nothing about torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shared.model_dimensions import Dimensions, dimensions_of, is_tied
from shared.model_families import FAMILIES, ModelFamily

_ROTARY_NUMBERS = {
    "default": {"rope_theta"},
    "linear": {"rope_theta", "factor"},
    "llama3": {
        "rope_theta", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
    },
}  # fmt: skip
"""The kinds of rotary frequencies that are served, and the numbers that each needs."""


@dataclass(frozen=True, slots=True)
class LlamaShape:
    """A decoder of Llama-like blocks; its first four attributes have transformers' names, since decoding asks for them.

    Attributes:
        model_type: The family.
        rope_parameters: ``rope_type`` and its numbers.
        sliding_window: How many tokens, itself included, a token attends to; None is all before it.
        layer_types: Nothing: all layers are alike.
        dimensions: Widths and counts.
        norm_epsilon: Of every RMS norm.
        biased: Names of the projections that have a bias.
        has_head_norms: Whether queries and keys are normed, head by head.
        is_tied: Whether the output matrix is the embedding.
    """

    model_type: str
    rope_parameters: Mapping[str, Any]
    sliding_window: int | None
    layer_types: None
    dimensions: Dimensions
    norm_epsilon: float
    biased: frozenset[str]
    has_head_norms: bool
    is_tied: bool


def shape_of(fields: Mapping[str, Any]) -> LlamaShape | None:
    """Return the shape of a configuration, or None where transformers has to make the network.

    Args:
        fields: Reduced by ``safe_config``.

    Raises:
        UnsupportedModel: A dimension is missing or is not a positive whole number.
    """
    family = FAMILIES.get(str(fields.get("model_type")))
    if family is None or not family.is_llama_like or fields.get("hidden_act", "silu") != "silu":
        return None
    epsilon, rotation = fields.get("rms_norm_eps"), _rotation(fields)
    if type(epsilon) is not float or rotation is None or not _is_one_kind_of_layer(fields, family):
        return None
    return LlamaShape(
        model_type=family.model_type,
        rope_parameters=rotation,
        sliding_window=fields["sliding_window"] if family.has_window else None,
        layer_types=None,
        dimensions=dimensions_of(fields),
        norm_epsilon=epsilon,
        biased=frozenset(name for name, key in family.biases.items() if not key or fields.get(key, False) is True),
        has_head_norms=family.has_head_norms,
        is_tied=is_tied(fields),
    )


def _rotation(fields: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the rotary parameters, where exactly the numbers of a served kind are stated."""
    if fields.get("rope_scaling") is not None:
        return None
    stated = fields.get("rope_parameters", {"rope_theta": fields.get("rope_theta")})
    if not isinstance(stated, dict):
        return None
    numbers = {name: value for name, value in stated.items() if name != "rope_type"}
    known = _ROTARY_NUMBERS.get(stated.get("rope_type", "default"))
    is_served = set(numbers) == known and all(type(value) in (int, float) and value > 0 for value in numbers.values())
    return {"rope_type": "default", **stated} if is_served else None


def _is_one_kind_of_layer(fields: Mapping[str, Any], family: ModelFamily) -> bool:
    """Return whether all layers attend to the same tokens, and the configuration says to which."""
    window = fields.get("sliding_window")
    if family.has_window:  # where no window is stated, transformers takes one of its own
        return "sliding_window" in fields and (window is None or (type(window) is int and window > 0))
    return fields.get("use_sliding_window", False) is False and set(fields.get("layer_types") or ()) <= {
        "full_attention"
    }
