"""One token's way through all blocks and the head as one call of the backend's kernels.

Between two calls of kernels Python and torch take some 20 µs, and threads start and stop: on a model of 135 million
weights a quarter of the time, here nothing. Serves what ``TokenKernels.takes_whole_steps``. Knows nothing about texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from device_client.model.backends.token_kernels import DecoderParts, TokenKernels
from device_client.model.decoding.block_parts import block_parts, is_silu, norm_part
from device_client.model.decoding.growing_heads import GrowingHeads
from device_client.model.output_head import OutputHead


def takes_whole_steps(decoder: Any, values: Tensor, kernels: TokenKernels) -> bool:
    """Return whether the kernels compute a packed decoder's token in one call.

    Args:
        decoder: A transformers decoder whose blocks are packed.
        values: Compute dtype (k,), the sensitive values of the whole model.
        kernels: Those of the backend that packed them.
    """
    blocks = [block_parts(layer, values) for layer in decoder.layers]
    return all(map(is_silu, decoder.layers)) and kernels.takes_whole_steps(blocks, values.dtype)


class WholeSteps:
    """Computes one token after the other.

    Args:
        decoder: A transformers decoder of which ``takes_whole_steps``.
        head: Hidden states to logits; one call more where its matrix is not packed.
        values: Compute dtype (k,), the sensitive values of the whole model; read at every step.
        kernels: Those of the backend that packed them.
    """

    def __init__(self, decoder: Any, head: nn.Module, values: Tensor, kernels: TokenKernels) -> None:
        self._head = head
        attention = decoder.layers[0].self_attn
        self._step = kernels.whole_step(
            DecoderParts(
                blocks=[block_parts(layer, values) for layer in decoder.layers],
                norm=norm_part(decoder.norm),
                head=head.factor() if isinstance(head, OutputHead) else None,
                head_size=attention.head_dim,
                scale=attention.scaling,
            )
        )
        self._seen: Tensor | None = None

    def take(
        self, hidden: Tensor, position: int, cosines: Tensor, sines: Tensor, kept: Sequence[GrowingHeads]
    ) -> Tensor:
        """Return the logits after a token, (vocabulary,), from its embedding (hidden,), which is overwritten."""
        for of_block in kept:
            of_block.make_room_for(position)
        place = kept[0].heads(position)
        if place.keys is not self._seen:
            self._step.keep([of_block.heads(position) for of_block in kept])
            self._seen = place.keys
        products = self._step(hidden, place, cosines, sines)
        if products is not None and isinstance(self._head, OutputHead):
            return self._head.finished(products)
        logits: Tensor = self._head(hidden[None])
        return logits[0]
