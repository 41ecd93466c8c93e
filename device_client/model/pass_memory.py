"""The tensors that are alive at once in a forward pass, from shapes alone.

    a block      P·T·b · (4H + max( 4Q + 2K,           attention: q k v, their rotated and repeated copies
                                    3M,                gated MLP: activation (made in place), up, product
                                    F · (1 + 1/P),     plain MLP: its activation copies one point at a time
                                    3H·4/b ))          norms, which compute in float32
    the head     P·T·b·H + P·A·V·4 + A·V·b             hidden states, float32 logits of all points, logits of one
    the scores   P·A·V·4 + max(4 MiB, V·4)             logits and a portion of their log-softmax

    keys and values = rows · (cached columns + 64) · b · 2K · (blocks + 1)        one block's are copied as they grow

4H: the embeddings, the block's input, the residual and the normed input are all alive inside a block. What a pass needs
is the hungriest of these moments; the rest of what it makes (rotary tables, indices) is under 3 %.

Symbols: T tokens of one point · P points · b bytes of a value · H hidden · Q, K width of all queries, of all keys ·
M, F width of a gated, of a plain MLP · A answers of one point · V vocabulary.
``tests/device_client/model/test_pass_memory.py`` counts operator by operator. Imports neither torch nor transformers.
"""

from __future__ import annotations

from typing import Any

from device_client.model.workload import GROWTH_TOKENS, Workload
from shared.errors import UnsupportedModel

SCORES_AT_ONCE_BYTES = 4 << 20
"""Log-softmax that scoring holds at once; at least that of one row."""

_LOGIT_BYTES = 4


def hungriest_moment(architecture: dict[str, Any], workload: Workload, value_bytes: int) -> list[int]:
    """Return the bytes of each tensor that is alive when a pass holds most.

    Args:
        architecture: The bundle's.
        workload: The shape of the pass.
        value_bytes: Bytes of one value in the compute dtype.

    Raises:
        UnsupportedModel: The architecture lacks a dimension.
    """
    moments = _block_moments(architecture, workload, value_bytes) + _head_moments(architecture, workload, value_bytes)
    return max(moments, key=sum)


def key_value_bytes(architecture: dict[str, Any], workload: Workload, value_bytes: int) -> int:
    """Return the bytes of the keys and values that generating a text keeps."""
    _, keys = _attention_widths(architecture)
    copies = _dimension(architecture, "num_hidden_layers") + 1
    return workload.rows * (workload.cached_columns + GROWTH_TOKENS) * 2 * keys * copies * value_bytes


def _block_moments(architecture: dict[str, Any], workload: Workload, value_bytes: int) -> list[list[int]]:
    hidden = _dimension(architecture, "hidden_size")
    queries, keys = _attention_widths(architecture)
    gated, plain = (_dimension(architecture, key, 0) for key in ("intermediate_size", "ffn_dim"))
    of_a_point = workload.tokens * value_bytes
    all_points = workload.points * of_a_point
    carried = [hidden * all_points] * 4
    attention = [queries * all_points] * 4 + [keys * all_points] * 2
    mlp = [gated * all_points] * 3 if gated else [plain * all_points, plain * of_a_point]
    norm = [hidden * workload.points * workload.tokens * 4] * 3
    return [carried + inside for inside in (attention, mlp, norm)]


def _head_moments(architecture: dict[str, Any], workload: Workload, value_bytes: int) -> list[list[int]]:
    vocabulary = _dimension(architecture, "vocab_size")
    hidden = workload.points * workload.tokens * _dimension(architecture, "hidden_size") * value_bytes
    logits = workload.points * workload.answers * vocabulary * _LOGIT_BYTES
    portion = min(logits, max(SCORES_AT_ONCE_BYTES, vocabulary * _LOGIT_BYTES))
    return [[hidden, logits, workload.answers * vocabulary * value_bytes], [logits, portion]]


def _attention_widths(architecture: dict[str, Any]) -> tuple[int, int]:
    """Return the width of all queries, and of all keys, of one token."""
    hidden, heads = _dimension(architecture, "hidden_size"), _dimension(architecture, "num_attention_heads")
    head_width = _dimension(architecture, "head_dim", hidden // heads)
    return heads * head_width, _dimension(architecture, "num_key_value_heads", heads) * head_width


def _dimension(architecture: dict[str, Any], key: str, default: int | None = None) -> int:
    value = default if architecture.get(key) is None else architecture[key]
    if type(value) is not int or value < (1 if default is None else 0):
        raise UnsupportedModel(f"{key} is {value!r} in the bundle's architecture", needed="a positive whole number")
    return value
