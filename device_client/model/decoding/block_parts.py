"""What a transformers block of llama's kind consists of, for kernels that compute one token without its modules.

Knows nothing about decoding.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from device_client.model.backends.token_kernels import BlockParts, Factor, NormPart
from device_client.model.linear import QuantizedSparseLinear
from device_client.model.point_by_point import PointwiseActivation

_ATTENTION_PRODUCTS = ("q_proj", "k_proj", "v_proj", "o_proj")
_GATED_PRODUCTS = ("gate_proj", "up_proj", "down_proj")


def is_packed(layer: Any) -> bool:
    """Return whether all products of a block are those of packed weights alone."""
    linears = [module for module in layer.modules() if isinstance(module, QuantizedSparseLinear)]
    if any(linear.addition is not None for linear in linears):
        return False
    return len(linears) == len(_ATTENTION_PRODUCTS) + len(_GATED_PRODUCTS)


def is_silu(layer: Any) -> bool:
    """Return whether x · sigmoid(x) stands between a block's gate and its product with up."""
    function = layer.mlp.act_fn
    return function.is_silu if isinstance(function, PointwiseActivation) else type(function).__name__ == "SiLU"


def block_parts(layer: Any, values: Tensor) -> BlockParts:
    """Return the norms and weights of a block.

    Args:
        layer: A packed block.
        values: Compute dtype (k,), the sensitive values of the whole model.
    """

    def factor(linear: QuantizedSparseLinear) -> Factor:
        return Factor(linear.packed, values[linear.where], linear.bias)

    query, key, value, output = (factor(getattr(layer.self_attn, name)) for name in _ATTENTION_PRODUCTS)
    gate, up, down = (factor(getattr(layer.mlp, name)) for name in _GATED_PRODUCTS)
    return BlockParts(
        attention_norm=norm_part(layer.input_layernorm),
        query_norm=norm_part(getattr(layer.self_attn, "q_norm", None)),
        key_norm=norm_part(getattr(layer.self_attn, "k_norm", None)),
        mlp_norm=norm_part(layer.post_attention_layernorm),
        query=query, key=key, value=value, output=output, gate=gate, up=up, down=down,
    )  # fmt: skip


def norm_part(module: Any) -> NormPart:
    """Return a transformers RMSNorm, or none."""
    return NormPart(None, 0.0) if module is None else NormPart(module.weight, module.variance_epsilon)
