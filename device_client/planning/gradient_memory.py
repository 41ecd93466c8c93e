"""What a step along the exact gradient holds, beside what a forward pass does, from shapes alone.

    kept         T·b · N·H                            the input of every block that is tuned
    a block      T·b · ((c + 2)·H + 3Q + 2K + …       what the block keeps for its way back
                      max( 6M,                        gated MLP: gate, its activation, up, and their gradients
                           F · (1 + 2a),              plain MLP: its activation makes a copies and their gradients
                           4M + the gathering))       one weight's places, turned tiles and portions of products
                 … + (2H + Q + K)·4/b where b < 4     RMS norms, of heads too, keep float32
                                                      (families with a plain MLP have layer norms, which do not)
                 … + 3 · heads · C·4/b                attention that is no fused kernel keeps its probabilities
    the head     T·b · 2H + 3 · portion of logits     hidden states with and without the last norm

A step holds the kept inputs and the hungrier of a block and the head. Symbols as in ``pass_memory``; N tuned blocks,
c hidden states that the family carries; a block's input is there once more than it is kept.
``tests/device_client/planning/test_gradient_memory.py`` counts operator by operator.
Imports neither torch nor transformers.
"""

from __future__ import annotations

from typing import Any

from device_client.model.gradient.bounds import PLACES_AT_ONCE, TOKENS_AT_ONCE, positions_at_once
from device_client.planning.workload import Workload
from shared.architecture import family_of
from shared.model_dimensions import dimensions_of

THETA_VECTORS = 7
"""Vectors of k float32: θ of the run, of the bundle and the best; the gradient; two moments; the step being made."""

_FLOAT32 = 4


def kept_inputs_bytes(architecture: dict[str, Any], workload: Workload, value_bytes: int, blocks: int) -> int:
    """Return the bytes of the inputs that a forward pass keeps, one of each of the tuned ``blocks``.

    Raises:
        UnsupportedModel: The architecture lacks a dimension.
    """
    dimensions = dimensions_of(architecture)
    return blocks * workload.tokens * dimensions.hidden * value_bytes


def differentiated_moment(
    architecture: dict[str, Any], workload: Workload, value_bytes: int, most_places: int
) -> list[int]:
    """Return the bytes of each tensor that is alive when a gradient holds most, beside the kept inputs.

    Args:
        architecture: The bundle's.
        workload: The shape of a pass.
        value_bytes: Bytes of one value in the compute dtype.
        most_places: Sensitive values of the weight that has most.

    Raises:
        UnsupportedModel: The architecture lacks a dimension.
    """
    dimensions, family = dimensions_of(architecture), family_of(architecture, allow_untested=True)
    tokens = workload.tokens * value_bytes
    hidden, middle = dimensions.hidden * tokens, dimensions.intermediate * tokens
    kept = [hidden] * (family.carried_hidden_states + 2) + [dimensions.queries * tokens] * 3
    kept += [dimensions.keys * tokens] * 2
    if value_bytes < _FLOAT32 and family.is_gated:
        kept += [hidden * _FLOAT32 // value_bytes] * 2
        kept += [width * workload.tokens * _FLOAT32 for width in (dimensions.queries, dimensions.keys)]
    if family.attention == "eager":
        kept += [workload.tokens * workload.columns * dimensions.heads * _FLOAT32] * 3
    gathering = [TOKENS_AT_ONCE * (dimensions.hidden + dimensions.intermediate) * value_bytes]
    gathering += [TOKENS_AT_ONCE * min(PLACES_AT_ONCE, most_places) * _FLOAT32] * 3
    if family.is_gated:
        moments = [kept + [middle] * 6, kept + [middle] * 4 + gathering]
    else:
        moments = [kept + [middle] * (1 + 2 * family.activation_copies), kept + [middle] * 3 + gathering]
    positions = min(workload.answers, positions_at_once(dimensions.vocabulary))
    moments.append([hidden] * 2 + [positions * dimensions.vocabulary * _FLOAT32] * 3)
    return max(moments, key=sum)
