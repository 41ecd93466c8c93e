"""The tensors that are alive at once in a forward pass, from shapes alone.

    a block      P·T·b · (4H + max( 4Q + 2K,           attention: q k v, their rotated and repeated copies
                                    3M,                gated MLP: activation (made in place), up, product
                                    F · (1 + 1/P),     plain MLP: its activation copies one point at a time
                                    3 · heads · C·4/b, attention that is no fused kernel: its probabilities
                                    3H·4/b ))          norms, which compute in float32
    the head     P·T·b·H + P·A·V·4 + A·V·b             hidden states, float32 logits of all points, logits of one
    the scores   P·A·V·4 + max(4 MiB, V·4)             logits and a portion of their log-softmax

    a prefix     P·b · rows · (C + m) · (2K + C)          in the attention: keys and values behind it, and a mask
    factors      P·T·b·H + T·b·r                          in the MLP: a layer's input lives until they have added to it

    keys and values = rows · (cached columns + 64) · b · 2K · (blocks + 1)        one block's are copied as they grow

4H: the embeddings, the block's input, the residual and the normed input are all alive inside a block; some families
keep more of them, and GPT-2's activation makes 3 F / P. Attention that is no fused kernel also makes masks. What a pass
needs is the hungriest of these moments; the rest of what it makes (rotary tables, indices) is under 3 %.

Symbols: T tokens of one point · C columns · P points · b bytes of a value · H hidden · Q, K width of all queries, of
all keys · M, F width of a gated, of a plain MLP · A answers of one point · V vocabulary ·
m positions of a prefix · r rank of factors.
``tests/device_client/planning/test_pass_memory.py`` counts operator by operator.
Imports neither torch nor transformers.
"""

from __future__ import annotations

from typing import Any

from device_client.planning.methods import METHODS, LowRankFactors
from device_client.planning.workload import GROWTH_TOKENS, Workload
from shared.architecture import family_of
from shared.model_dimensions import Dimensions, dimensions_of
from shared.model_families import ModelFamily

SCORES_AT_ONCE_BYTES = 4 << 20
"""Log-softmax that scoring holds at once; at least that of one row."""

_FLOAT32 = 4


def hungriest_moment(architecture: dict[str, Any], workload: Workload, value_bytes: int) -> list[int]:
    """Return the bytes of each tensor that is alive when a pass holds most.

    Args:
        architecture: The bundle's.
        workload: The shape of the pass.
        value_bytes: Bytes of one value in the compute dtype.

    Raises:
        UnsupportedModel: The architecture lacks a dimension.
    """
    dimensions = dimensions_of(architecture)
    family = family_of(architecture, allow_untested=True)
    in_blocks = _block_moments(dimensions, family, workload, value_bytes)
    return max(in_blocks + _head_moments(dimensions, workload, value_bytes), key=sum)


def key_value_bytes(architecture: dict[str, Any], workload: Workload, value_bytes: int) -> int:
    """Return the bytes of the keys and values that writing texts keeps, of all rows at all points."""
    dimensions = dimensions_of(architecture)
    copies = dimensions.blocks + 1
    return (
        workload.points
        * workload.rows
        * (workload.cached_columns + GROWTH_TOKENS)
        * 2
        * dimensions.keys
        * copies
        * value_bytes
    )


def _block_moments(
    dimensions: Dimensions, family: ModelFamily, workload: Workload, value_bytes: int
) -> list[list[int]]:
    of_a_point = workload.tokens * value_bytes
    all_points = workload.points * of_a_point
    carried = [dimensions.hidden * all_points] * family.carried_hidden_states
    attention = [dimensions.queries * all_points] * 4 + [dimensions.keys * all_points] * 2
    method = METHODS[workload.method]
    if method.positions_in_front:
        behind_prefix = workload.points * workload.rows * (workload.columns + method.positions_in_front) * value_bytes
        attention += [dimensions.keys * behind_prefix] * 2 + [workload.columns * behind_prefix]
    middle = dimensions.intermediate
    copies = family.activation_copies
    mlp = [middle * all_points] * 3 if family.is_gated else [middle * all_points] + [middle * of_a_point] * copies
    if isinstance(method, LowRankFactors):
        mlp += [dimensions.hidden * all_points, method.rank * of_a_point]
    norm = [dimensions.hidden * workload.points * workload.tokens * _FLOAT32] * 3
    if family.attention == "eager":
        probabilities = workload.points * workload.tokens * workload.columns * dimensions.heads
        carried += [workload.columns * all_points] * 2  # a mask for each kind of layer
        attention = [probabilities * _FLOAT32] * 3
        mlp.append(probabilities * value_bytes)
    return [carried + inside for inside in (attention, mlp, norm)]


def _head_moments(dimensions: Dimensions, workload: Workload, value_bytes: int) -> list[list[int]]:
    vocabulary = dimensions.vocabulary
    hidden = workload.points * workload.tokens * dimensions.hidden * value_bytes
    logits = workload.points * workload.answers * vocabulary * _FLOAT32
    portion = min(logits, max(SCORES_AT_ONCE_BYTES, vocabulary * _FLOAT32))
    return [[hidden, logits, workload.answers * vocabulary * value_bytes], [logits, portion]]
