"""Bytes that one sequence's forward and backward pass holds at most, beside weights and accumulators.

    kept        A + max( loss, scratch )                     A = Σ over blocks reached by the backward pass of T·a
    recomputed  inputs + max( loss, T·a + scratch )          inputs = T·H·c per such block; T·a of one block only
    loss        3 float32 matrices of logits                 log-softmax, its gradient, the loss's; the logits are gone
    scratch     the hungriest moment inside one block's backward pass: a weight's gradient, or the MLP's

What autograd saves of one token in one block, a, in bytes (c bytes per value; norms compute in float32):

    llama, mistral, qwen2   4Mc + 2Hc + 2·4H + 2Qc + 2Kc + 4h + 8       MLP · normed inputs · residuals · q, o · k, v
    qwen3                   the same + 4(Q + K + h + h_k)               norms of q and k
    opt                     Mc + 5Hc + 3Qc + 4h + 4c                    ReLU, layer norms
    less, where no weight's gradient is wanted     Mc + 2Hc (opt: 2Hc)  the inputs of the linear layers

Symbols: T tokens · H hidden · M width of the MLP · Q, K widths of all queries and keys · h, h_k heads · c value bytes.
Attention is ``scaled_dot_product_attention``, which saves no T × T matrix. tests/cloud_service/pipeline/planning counts
live bytes operator by operator and compares. Costs nothing. Knows nothing about devices or allocators.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from cloud_service.pipeline.planning.model_shape import ModelShape

_FLOAT32 = 4


@dataclass(frozen=True, slots=True)
class SequenceMemory:
    """The pass of sequences of ``tokens`` tokens through a model.

    Attributes:
        shape: The model.
        tokens: T.
        value_bytes: c, 2 or 4.
    """

    shape: ModelShape
    tokens: int
    value_bytes: int

    def peak(self, blocks: Collection[int], group: Collection[int], *, recomputes: bool, has_loss: bool = True) -> int:
        """Return the bytes at the hungriest moment.

        Args:
            blocks: The blocks whose activations lie on the device asked for.
            group: All blocks whose weights' gradients are wanted; the backward pass ends at the lowest.
            recomputes: Whether every block's activations are computed again in the backward pass.
            has_loss: Whether logits and loss lie on this device.
        """
        reached = [block for block in blocks if block >= min(group)]
        loss = 3 * (self.tokens - 1) * self.shape.vocabulary * _FLOAT32 if has_loss else 0
        held = self._norm_input_bytes if recomputes and reached else 0
        moments = [0]
        saved = {wanted: self.block_bytes(has_gradient=wanted) for wanted in (False, True)}
        scratch = {wanted: self._scratch(wanted) for wanted in (False, True)}
        kept = self.hidden_bytes
        for block in reached:
            wanted = block in group
            held += kept if recomputes else saved[wanted]
            moments.append(held + scratch[wanted] + (saved[wanted] if recomputes else 0))
        return max(held + loss, *moments)

    def block_bytes(self, *, has_gradient: bool = True) -> int:
        """Return T·a: what autograd saves of one block.

        Args:
            has_gradient: Whether the gradients of the block's weights are wanted.
        """
        return self.tokens * _saved_per_token(self.shape, self.value_bytes, has_gradient)

    @property
    def hidden_bytes(self) -> int:
        """T·H·c: what enters a block."""
        return self.tokens * self.shape.hidden * self.value_bytes

    def forward_bytes(self, rows: int) -> int:
        """Return the bytes of a forward pass without gradients over ``rows`` sequences, logits included."""
        shape, value = self.shape, self.value_bytes
        attention = (4 * shape.query_width + 2 * shape.key_width) * value
        inside = 4 * shape.hidden * value + max(attention, 3 * shape.intermediate * value, 3 * shape.hidden * _FLOAT32)
        logits = shape.vocabulary * (value + 2 * _FLOAT32)
        return rows * self.tokens * (inside + logits)

    @property
    def _norm_input_bytes(self) -> int:
        return self.tokens * self.shape.hidden * (self.value_bytes if self.shape.model_type == "opt" else _FLOAT32)

    def _scratch(self, has_gradient: bool) -> int:
        """Return what one block's backward pass takes beside what was saved."""
        is_opt = self.shape.model_type == "opt"
        middle = self.tokens * self.shape.intermediate * self.value_bytes
        if not has_gradient:
            return (2 if is_opt else 3) * middle
        gradient = self.shape.largest_linear
        at_product = middle + gradient * self.value_bytes
        # A bfloat16 gradient is held beside its float32 copy; by then a gated MLP's saved product is gone.
        at_square = (middle if is_opt else 0) + gradient * (self.value_bytes + (0 if self.value_bytes == 4 else 4))
        return max(at_product, at_square, 2 * middle)


def _saved_per_token(shape: ModelShape, value_bytes: int, has_gradient: bool) -> int:
    hidden, middle, queries, keys = shape.hidden, shape.intermediate, shape.query_width, shape.key_width
    linear_inputs = 2 * hidden * value_bytes
    if shape.model_type == "opt":
        norms = 2 * hidden * value_bytes + 4 * value_bytes
        rest = (middle + hidden + 3 * queries) * value_bytes + _FLOAT32 * shape.heads
        return norms + rest + (linear_inputs if has_gradient else 0)
    norms = 2 * _FLOAT32 * (hidden + 1)
    attention = 2 * (queries + keys) * value_bytes + _FLOAT32 * shape.heads
    if shape.model_type == "qwen3":
        attention += _FLOAT32 * (queries + keys + shape.heads + shape.key_heads)
    gated = 3 * middle * value_bytes
    return norms + attention + gated + (linear_inputs + middle * value_bytes if has_gradient else 0)
