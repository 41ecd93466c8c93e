"""What autograd saves of one token in one decoder block, family by family: multiples of the block's widths.

    a = c · (h·H + m·M + q·Q + k·K + n)                 in the compute dtype, c bytes a value
      + 4 · (h₄·H + q₄·Q + k₄·K + r·heads + s·key_heads + n₄)        in float32: norms, softmax sums
      + c · (hᵍ·H + mᵍ·M + qᵍ·Q)                        only where the weights' gradients are wanted: linear inputs
      + w · heads · T                                   only where attention is not a fused kernel: its probabilities
      + c · (2·(Q − K) + T)                             only where the sequence is longer than an attention window

Symbols: T tokens · H hidden · M width of the MLP · Q, K widths of all queries and keys. Every number was found by
counting the tensors that a block of transformers saves; tests/cloud_service/pipeline/planning counts again. Costs
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from shared.architecture import family_of

_FLOAT32 = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedActivations:
    """The multiples of one family; the names of the module's formula are in brackets.

    Attributes:
        hidden: Of H [h].
        middle: Of M [m].
        queries: Of Q [q].
        keys: Of K [k].
        numbers: Values beside them [n].
        float_hidden: Of H in float32 [h₄].
        float_queries: Of Q in float32 [q₄].
        float_keys: Of K in float32 [k₄].
        float_key_heads: Of the key heads in float32 [s].
        float_heads: Of the heads in float32 [r].
        float_numbers: float32 values beside them [n₄].
        hidden_of_gradients: Of H where gradients are wanted [hᵍ].
        middle_of_gradients: Of M where gradients are wanted [mᵍ].
        queries_of_gradients: Of Q where gradients are wanted [qᵍ].
        probability_bytes: Bytes of each attention probability [w].
        scratch_middle: Matrices of the MLP's width that its backward pass takes where no gradient is wanted.
        middle_at_square: Of them, those alive while a weight's gradient is squared.
        has_norm_in_front: Whether a block begins with a norm; the first one's takes no gradient, so that what it does
            not save makes up for the final norm.
        has_float_norms: Whether norms compute in float32.
    """

    hidden: int = 0
    middle: int = 3
    queries: int = 2
    keys: int = 2
    numbers: int = 0
    float_hidden: int = 2
    float_queries: int = 0
    float_keys: int = 0
    float_heads: int = 1
    float_key_heads: int = 0
    float_numbers: int = 2
    hidden_of_gradients: int = 2
    middle_of_gradients: int = 1
    queries_of_gradients: int = 0
    probability_bytes: int = 0
    scratch_middle: int = 3
    middle_at_square: int = 0
    has_norm_in_front: bool = True
    has_float_norms: bool = True

    def matrices_of_the_mlp(self, *, has_gradient: bool) -> int:
        """Return how many matrices of the MLP's width are saved."""
        return self.middle + (self.middle_of_gradients if has_gradient else 0)


_LLAMA = SavedActivations()
_LAYER_NORMS = replace(
    _LLAMA, float_hidden=0, float_numbers=0, numbers=4, has_float_norms=False, scratch_middle=2, middle_at_square=1
)
_FAMILIES: dict[str, SavedActivations] = {
    "qwen3": replace(_LLAMA, float_queries=1, float_keys=1, float_heads=2, float_key_heads=1),
    "opt": replace(_LAYER_NORMS, hidden=3, middle=1, queries=3, keys=0, middle_of_gradients=0),
    "gemma2": replace(
        _LLAMA, float_hidden=4, float_numbers=4, queries=3, keys=0, float_heads=0, queries_of_gradients=1,
        probability_bytes=8,
    ),
    "gemma3_text": replace(
        _LLAMA, float_hidden=4, float_numbers=4, float_queries=1, float_keys=1, float_heads=2, float_key_heads=1
    ),
    "phi3": replace(_LLAMA, queries=3, keys=3, queries_of_gradients=1),
    "gpt2": replace(_LAYER_NORMS, hidden=2, middle=4, queries=4, keys=0),
    "gpt_neox": replace(_LAYER_NORMS, hidden=3, middle=1, queries=4, keys=0, queries_of_gradients=1),
    "olmo2": replace(_LLAMA, float_queries=1, float_keys=1, float_numbers=4, has_norm_in_front=False),
    "stablelm": replace(
        _LLAMA, hidden=2, queries_of_gradients=1, float_hidden=0, float_numbers=0, numbers=4, has_float_norms=False
    ),
}  # fmt: skip
"""Families that are not here save what Llama does."""


def saved_activations(config: Mapping[str, Any]) -> SavedActivations:
    """Return the multiples for a model of this configuration, reduced by ``safe_config``."""
    model_type = family_of(config, allow_untested=True).model_type
    saved = _FAMILIES.get(model_type, _LLAMA)
    if model_type == "gpt_neox" and config.get("use_parallel_residual") is False:
        return replace(saved, hidden=saved.hidden + 1)
    if model_type == "stablelm":
        return _stablelm(saved, config)
    return saved


def _stablelm(saved: SavedActivations, config: Mapping[str, Any]) -> SavedActivations:
    if config.get("use_parallel_residual"):  # one norm, whose output both halves read
        saved = replace(saved, hidden=1, numbers=2, hidden_of_gradients=1)
    if config.get("qk_layernorm"):
        saved = replace(saved, queries=saved.queries + 1, keys=saved.keys + 1, float_heads=3, float_key_heads=2)
    return saved


def saved_bytes_per_token(
    saved: SavedActivations, widths: Mapping[str, int], *, value_bytes: int, has_gradient: bool, masked_tokens: int
) -> int:
    """Return a, the bytes of one token in one block.

    Args:
        saved: The family's multiples.
        widths: ``hidden``, ``middle``, ``queries``, ``keys``, ``heads``, ``key_heads`` and ``tokens``.
        value_bytes: c.
        has_gradient: Whether the gradients of the block's weights are wanted.
        masked_tokens: T where the sequence is longer than an attention window, else 0.
    """
    hidden, middle, queries, keys = (widths[name] for name in ("hidden", "middle", "queries", "keys"))
    values = saved.hidden * hidden + saved.middle * middle + saved.queries * queries + saved.keys * keys + saved.numbers
    if has_gradient:
        values += saved.hidden_of_gradients * hidden + saved.middle_of_gradients * middle
        values += saved.queries_of_gradients * queries
    if masked_tokens:  # a mask, and keys and values repeated for every query head
        values += masked_tokens + (0 if saved.probability_bytes else 2 * (queries - keys))
    floats = saved.float_hidden * hidden + saved.float_queries * queries + saved.float_keys * keys
    floats += saved.float_heads * widths["heads"] + saved.float_key_heads * widths["key_heads"] + saved.float_numbers
    probabilities = saved.probability_bytes * widths["heads"] * widths["tokens"]
    return values * value_bytes + floats * _FLOAT32 + probabilities
