"""Hidden states to logits, as the whole network of the family would: the output matrix, and what follows it.

    logits = W h                    then  logits / d               where the family divides
                                    then  c · tanh(logits / c)     where the family caps

Costs the product, and one matrix of logits more where something follows. Knows nothing about decoders.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from shared.model_families import ModelFamily


class OutputHead(nn.Module):
    """Computes logits.

    Args:
        matrix: The network's output matrix.
        divisor: d; None divides by nothing.
        cap: c; None caps nothing.
    """

    def __init__(self, matrix: nn.Module, divisor: float | None, cap: float | None) -> None:
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
        return int(self._matrix.weight.shape[0])  # type: ignore[index]

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the logits (…, vocabulary) of hidden states (…, hidden)."""
        logits: Tensor = self._matrix(hidden)
        if self._divisor is not None:
            logits = logits / self._divisor
        if self._cap is not None:
            logits = (logits / self._cap).tanh() * self._cap
        return logits
