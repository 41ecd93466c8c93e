"""What a backend may have for a single token beside ``Weight.multiply_few``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from device_client.model.backends.weight import Weight


@dataclass(frozen=True, slots=True)
class Factor:
    """One of several weights that the same inputs are multiplied with.

    Attributes:
        weight: A weight of the backend whose kernels multiply.
        values: Compute dtype (k,), its sensitive values.
        bias: Compute dtype (out_features,), or None.
    """

    weight: Weight
    values: Tensor
    bias: Tensor | None


class SideBySide(Protocol):
    """Multiplies one token's inputs with several weights; reads sensitive values where they lay when it was made."""

    def __call__(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Return x Wᵀ + b of each weight, compute dtype (out_features,), valid until the next call.

        Args:
            inputs: Compute dtype (in_features,), contiguous.
        """


@dataclass(frozen=True, slots=True)
class TokenHeads:
    """One token's heads, and how its position rotates them: x · cos + (−x₂, x₁) · sin for halves x₁ and x₂ of a head.

    Attributes:
        query: (heads, size); rotated in place, then overwritten by the result.
        key: (key heads, size); rotated in place.
        value: (key heads, size).
        cosines: (size,).
        sines: (size,).
    """

    query: Tensor
    key: Tensor
    value: Tensor
    cosines: Tensor
    sines: Tensor


@dataclass(frozen=True, slots=True)
class KeptHeads:
    """Keys and values of the tokens before, and where the next token goes.

    Attributes:
        keys: (key heads, capacity, size).
        values: (key heads, capacity, size).
        first: The first token that it attends to.
        position: Its own, below the capacity.
    """

    keys: Tensor
    values: Tensor
    first: int
    position: int


@dataclass(frozen=True, slots=True)
class NormPart:
    """w · x / √(mean(x²) + ε).

    Attributes:
        weight: w, compute dtype (columns,); None is no norm at all.
        epsilon: ε.
    """

    weight: Tensor | None
    epsilon: float


@dataclass(frozen=True, slots=True)
class BlockParts:
    """A block of llama's kind: h += o(attend(q, k, v of norm(h))); h += down(act(gate) · up of norm(h))."""

    attention_norm: NormPart
    query_norm: NormPart
    key_norm: NormPart
    mlp_norm: NormPart
    query: Factor
    key: Factor
    value: Factor
    output: Factor
    gate: Factor
    up: Factor
    down: Factor

    @property
    def factors(self) -> tuple[Factor, ...]:
        """All weights, in the order in which a token meets them."""
        return (self.query, self.key, self.value, self.output, self.gate, self.up, self.down)


@dataclass(frozen=True, slots=True)
class DecoderParts:
    """Blocks that are alike, with x · sigmoid(x) between gate and up, and what stands behind the last one.

    Attributes:
        blocks: From the first one on.
        norm: Behind the last block.
        head: Hidden states to logits, or None.
        head_size: Columns of a head of attention.
        scale: Of the products of queries and keys.
    """

    blocks: Sequence[BlockParts]
    norm: NormPart
    head: Factor | None
    head_size: int
    scale: float


class WholeStep(Protocol):
    """Computes one token; reads sensitive values where they lay when it was made."""

    def keep(self, kept: Sequence[KeptHeads]) -> None:
        """Attend to these keys and values of each block from now on; their buffers are alike."""

    def __call__(self, hidden: Tensor, place: KeptHeads, cosines: Tensor, sines: Tensor) -> Tensor | None:
        """Return the head's products, (vocabulary,), valid until the next call; None without a packed head.

        Args:
            hidden: The token's embedding (hidden,); overwritten by the normed state behind the last block.
            place: Of the token in the first block's buffers, as in all others'.
            cosines: (size,), of the token's position.
            sines: (size,).
        """


class TokenKernels(Protocol):
    """What one token's way through a block consists of; tensors are contiguous, in the compute dtype.

    A product of a single token takes less than a millisecond, and what is done between two products counts.
    """

    def side_by_side(self, factors: Sequence[Factor]) -> SideBySide:
        """Return what multiplies with several weights of as many in_features."""

    def norm(self, inputs: Tensor, weight: Tensor, epsilon: float, out: Tensor) -> None:
        """Write w · x / √(mean(x²) + ε) of each row, rounded before and after w as transformers' RMSNorm does.

        Args:
            inputs: x (…, columns).
            weight: w (columns,).
            epsilon: ε.
            out: (…, columns); may be the inputs.
        """

    def attend(self, heads: TokenHeads, kept: KeptHeads, scale: float) -> Tensor:
        """Rotate a token's query and key, keep key and value, and return what it attends to, (heads · size,).

        Σ_j softmax_j(scale · q · k_j) v_j over tokens j, in float32, rounded once. Heads of queries that share one of
        keys lie side by side. Valid until the token's heads are written again.
        """

    def takes_whole_steps(self, blocks: Sequence[BlockParts], dtype: torch.dtype) -> bool:
        """Return whether ``whole_step`` serves such blocks in that compute dtype."""

    def whole_step(self, parts: DecoderParts) -> WholeStep:
        """Return what computes a token in one call."""
