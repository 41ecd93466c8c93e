"""Hidden states to logits, as the whole network of the family would: the output matrix, and what follows it.

    logits = W h                    then  logits / d               where the family divides
                                    then  c · tanh(logits / c)     where the family caps

Costs the product, and one matrix of logits more where something follows. Knows nothing about decoders.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from device_client.model.backends.library_product import aligned
from device_client.model.backends.token_kernels import Factor
from device_client.model.embeddings import QuantizedHead
from shared.model_families import ModelFamily


class OutputHead(nn.Module):
    """Computes logits.

    Args:
        matrix: The network's output matrix.
        divisor: d; None divides by nothing.
        cap: c; None caps nothing.
    """

    def __init__(self, matrix: nn.Linear | QuantizedHead, divisor: float | None, cap: float | None) -> None:
        super().__init__()
        self._matrix, self._divisor, self._cap = matrix, divisor, cap

    @classmethod
    def of(cls, network: Any, family: ModelFamily) -> OutputHead:
        """Return the head of a transformers network of that family."""
        divisor, cap = (
            getattr(network.config, key) if key else None for key in (family.logit_divisor, family.logit_cap)
        )
        return cls(network.get_output_embeddings(), divisor, cap)

    @property
    def vocabulary(self) -> int:
        """How many logits there are."""
        return int(self._matrix.out_features)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the logits (…, vocabulary) of hidden states (…, hidden)."""
        return self.finished(self._matrix(hidden))

    def factor(self) -> Factor | None:
        """Return the output matrix for kernels, whose products are then ``finished``; None where it is not packed."""
        return self._matrix.factor() if isinstance(self._matrix, QuantizedHead) else None

    def write_logits(self, stacked: Tensor, logits: Tensor) -> Tensor:
        """Write the logits of every point to ``logits`` (points, tokens, vocabulary), of any dtype, and return it.

        Args:
            stacked: Hidden states (points, tokens, hidden).
            logits: Where they go.
        """
        if isinstance(self._matrix, QuantizedHead):
            return logits.copy_(self.finished(self._matrix.write_logits(stacked, logits)))
        for at_point, states in zip(logits, stacked, strict=True):  # the head, too, sees the shapes of a point alone
            at_point.copy_(self(aligned(states)))
        return logits

    def finished(self, logits: Tensor) -> Tensor:
        """Return the logits of a product with the output matrix: divided and capped."""
        if self._divisor is not None:
            logits = logits / self._divisor
        if self._cap is not None:
            logits = (logits / self._cap).tanh() * self._cap
        return logits
