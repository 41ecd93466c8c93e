"""One token's way through its blocks, kernel by kernel: ten steps for each block.

    norm · q, k, v side by side · attend · o · add · norm · gate, up side by side · activate · down · add

Serves every compute dtype, activation and kind of packed weight. Knows nothing about texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from device_client.model.backends.token_kernels import (
    BlockParts,
    KeptHeads,
    NormPart,
    SideBySide,
    TokenHeads,
    TokenKernels,
)
from device_client.model.decoding.block_parts import block_parts, norm_part
from device_client.model.decoding.growing_heads import GrowingHeads


class Stepwise:
    """Computes one token after the other.

    Args:
        decoder: A transformers decoder whose blocks are packed.
        head: Hidden states to logits.
        values: Compute dtype (k,), the sensitive values of the whole model; read at every step.
        kernels: Those of the backend that packed them.
    """

    def __init__(self, decoder: Any, head: nn.Module, values: Tensor, kernels: TokenKernels) -> None:
        self._head = head
        self._norm = _Norm(norm_part(decoder.norm), kernels)
        self._blocks = [_Block(layer, block_parts(layer, values), kernels) for layer in decoder.layers]

    def take(
        self, hidden: Tensor, position: int, cosines: Tensor, sines: Tensor, kept: Sequence[GrowingHeads]
    ) -> Tensor:
        """Return the logits after a token, (vocabulary,), from its embedding (hidden,), which is overwritten."""
        for block, of_block in zip(self._blocks, kept, strict=True):
            of_block.make_room_for(position)
            block.advance(hidden, cosines, sines, of_block.heads(position))
        logits: Tensor = self._head(self._norm(hidden)[None])
        return logits[0]


class _Block:
    """One block."""

    def __init__(self, layer: Any, parts: BlockParts, kernels: TokenKernels) -> None:
        self._kernels = kernels
        self._size, self._scale = layer.self_attn.head_dim, layer.self_attn.scaling
        self._activation = layer.mlp.act_fn
        self._norms = [_Norm(part, kernels) for part in (parts.attention_norm, parts.mlp_norm)]
        self._head_norms = [_Norm(part, kernels) for part in (parts.query_norm, parts.key_norm)]
        groups = ([parts.query, parts.key, parts.value], [parts.output], [parts.gate, parts.up], [parts.down])
        self._products: list[SideBySide] = [kernels.side_by_side(factors) for factors in groups]

    def advance(self, hidden: Tensor, cosines: Tensor, sines: Tensor, kept: KeptHeads) -> None:
        """Change a token's hidden state (hidden,) to that behind the block."""
        attention_inputs, attention_output, gated_inputs, gated_output = self._products
        query, key, value = (part.view(-1, self._size) for part in attention_inputs(self._norms[0](hidden)))
        for norm, heads in zip(self._head_norms, (query, key), strict=True):
            norm(heads, out=heads)
        token = TokenHeads(query, key, value, cosines, sines)
        mixed = self._kernels.attend(token, kept, self._scale)
        hidden.add_(*attention_output(mixed))
        gate, up = gated_inputs(self._norms[1](hidden))
        hidden.add_(*gated_output(self._activation(gate).mul_(up)))


class _Norm:
    """A norm, or none, and a buffer for what it returns."""

    def __init__(self, part: NormPart, kernels: TokenKernels) -> None:
        self._part, self._kernels = part, kernels
        self._buffer = torch.empty(0) if part.weight is None else torch.empty_like(part.weight)

    def __call__(self, inputs: Tensor, *, out: Tensor | None = None) -> Tensor:
        if self._part.weight is None:
            return inputs
        outputs = self._buffer if out is None else out
        self._kernels.norm(inputs, self._part.weight, self._part.epsilon, outputs)
        return outputs
