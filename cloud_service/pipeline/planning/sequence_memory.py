"""Bytes that one sequence's forward and backward pass holds at most, beside weights and accumulators.

    kept        A + max( loss, scratch )                     A = Σ over blocks reached by the backward pass of T·a
    recomputed  inputs + max( loss, T·a + scratch )          inputs = T·H·c per such block; T·a of one block only
    loss        3 float32 matrices of logits                 log-softmax, its gradient, the loss's; the logits are gone,
                                                             but for those of a family that caps them
    scratch     the hungriest moment inside one block's backward pass: a weight's gradient, or the MLP's

What autograd saves of one token in one block, a, depends on the family: see ``saved_activations``.

Symbols: T tokens · H hidden · c value bytes. tests/cloud_service/pipeline/planning counts live bytes operator by
operator and compares. Costs nothing. Knows nothing about devices or allocators.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from cloud_service.pipeline.planning.model_shape import ModelShape
from cloud_service.pipeline.planning.saved_activations import SavedActivations, saved_bytes_per_token

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
        logits = (self.tokens - 1) * self.shape.vocabulary
        loss = logits * (3 * _FLOAT32 + (self.value_bytes if self.shape.caps_logits else 0)) if has_loss else 0
        held = self._norm_input_bytes if reached and (recomputes or not self.saved.has_norm_in_front) else 0
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
        shape = self.shape
        widths = {
            "hidden": shape.hidden, "middle": shape.intermediate, "queries": shape.query_width,
            "keys": shape.key_width, "heads": shape.heads, "key_heads": shape.key_heads, "tokens": self.tokens,
        }  # fmt: skip
        return self.tokens * saved_bytes_per_token(
            self.saved,
            widths,
            value_bytes=self.value_bytes,
            has_gradient=has_gradient,
            masked_tokens=self.tokens if shape.window is not None and self.tokens > shape.window else 0,
        )

    @property
    def saved(self) -> SavedActivations:
        """What a block of the family saves."""
        return self.shape.saved

    @property
    def hidden_bytes(self) -> int:
        """T·H·c: what enters a block."""
        return self.tokens * self.shape.hidden * self.value_bytes

    def forward_bytes(self, rows: int) -> int:
        """Return the bytes of a forward pass without gradients over ``rows`` sequences, logits included."""
        shape, value = self.shape, self.value_bytes
        attention = (4 * shape.query_width + 2 * shape.key_width) * value
        if self.saved.probability_bytes:
            attention += shape.heads * self.tokens * (2 * value + _FLOAT32)
        inside = 4 * shape.hidden * value + max(attention, 3 * shape.intermediate * value, 3 * shape.hidden * _FLOAT32)
        logits = shape.vocabulary * (value + 2 * _FLOAT32)
        return rows * self.tokens * (inside + logits)

    @property
    def _norm_input_bytes(self) -> int:
        return self.tokens * self.shape.hidden * (_FLOAT32 if self.saved.has_float_norms else self.value_bytes)

    def _scratch(self, has_gradient: bool) -> int:
        """Return what one block's backward pass takes beside what was saved."""
        middle = self.tokens * self.shape.intermediate * self.value_bytes
        if not has_gradient:
            return self.saved.scratch_middle * middle
        gradient = self.shape.largest_linear
        at_product = middle + gradient * self.value_bytes
        # A bfloat16 gradient is held beside its float32 copy; by then a gated MLP's saved product is gone.
        at_square = self.saved.middle_at_square * middle
        at_square += gradient * (self.value_bytes + (0 if self.value_bytes == 4 else 4))
        return max(at_product, at_square, 2 * middle)
