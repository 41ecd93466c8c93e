"""Token sequences side by side, and the positions whose next-token logits are wanted.

Rows are padded on the right. Under a causal mask a real position never looks to its right, so the padding cannot
reach a wanted logit and the model needs no padding mask at all; this is why another layout is refused here.
Knows nothing about models or tokenizers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Right-padded sequences and the positions whose next-token logits are wanted.

    Attributes:
        input_ids: int64 (rows, columns).
        attention_mask: bool or int64 (rows, columns); 1 at real tokens, 0 at the padding that follows them.
        logit_rows: int64 (n,), the row of each wanted position.
        logit_columns: int64 (n,), its column; the logits there predict the token at column + 1.

    Raises:
        ValueError: A shape or dtype is wrong, the padding is not on the right, or a wanted position is no real token.
    """

    input_ids: Tensor
    attention_mask: Tensor
    logit_rows: Tensor
    logit_columns: Tensor

    def __post_init__(self) -> None:
        if self.input_ids.dim() != 2 or self.input_ids.dtype != torch.int64:
            raise ValueError(f"input_ids is {self.input_ids.dtype} {tuple(self.input_ids.shape)}; needed int64, 2-D")
        if self.attention_mask.shape != self.input_ids.shape:
            raise ValueError(f"attention_mask is {tuple(self.attention_mask.shape)}; needed {self.shape}")
        if self.logit_rows.shape != self.logit_columns.shape or self.logit_rows.dim() != 1:
            raise ValueError("logit_rows and logit_columns must be two vectors of the same length")
        is_real = self.attention_mask.bool()
        if (is_real[:, 1:] & ~is_real[:, :-1]).any():
            raise ValueError("attention_mask has a real token after padding; rows must be padded on the right")
        if not is_real[self.logit_rows, self.logit_columns].all():
            raise ValueError("logits are wanted at a padded position")

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.input_ids.shape[0], self.input_ids.shape[1]
