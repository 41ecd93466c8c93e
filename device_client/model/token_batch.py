"""Token sequences side by side, and the positions whose next-token logits are wanted.

Rows are padded on the right. Under a causal mask a real position never looks to its right, so the padding cannot
reach a wanted logit and the model needs no padding mask at all; this is why another layout is refused here.
Contents are looked at on the host only: looking at them on an accelerator would wait for all that it still computes,
so a batch is made on the host and moved. Knows nothing about models or tokenizers.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Right-padded sequences and the positions whose next-token logits are wanted; all on one device.

    Attributes:
        input_ids: int64 (rows, columns).
        attention_mask: bool or int64 (rows, columns); 1 at real tokens, 0 at the padding that follows them.
        logit_rows: int64 (n,), the row of each wanted position.
        logit_columns: int64 (n,), its column; the logits there predict the token at column + 1.

    Raises:
        ValueError: A shape, dtype or device is wrong; or, on the host, the padding is not on the right, or a wanted
            position is no real token.
    """

    input_ids: Tensor
    attention_mask: Tensor
    logit_rows: Tensor
    logit_columns: Tensor

    def __post_init__(self) -> None:
        self._check_form()
        if self.input_ids.device.type == "cpu":
            self._check_contents()

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.input_ids.shape[0], self.input_ids.shape[1]

    def _check_form(self) -> None:
        if self.input_ids.dim() != 2 or self.input_ids.dtype != torch.int64:
            raise ValueError(f"input_ids is {self.input_ids.dtype} {tuple(self.input_ids.shape)}; needed int64, 2-D")
        if self.attention_mask.shape != self.input_ids.shape:
            raise ValueError(f"attention_mask is {tuple(self.attention_mask.shape)}; needed {self.shape}")
        if self.logit_rows.shape != self.logit_columns.shape or self.logit_rows.dim() != 1:
            raise ValueError("logit_rows and logit_columns must be two vectors of the same length")
        devices = {str(getattr(self, field.name).device) for field in fields(self)}
        if len(devices) > 1:
            raise ValueError(f"the tensors lie on {' and '.join(sorted(devices))}; needed one device")

    def _check_contents(self) -> None:
        is_real = self.attention_mask.bool()
        if (is_real[:, 1:] & ~is_real[:, :-1]).any():
            raise ValueError("attention_mask has a real token after padding; rows must be padded on the right")
        rows, columns = self.logit_rows, self.logit_columns
        if ((rows < 0) | (rows >= self.shape[0]) | (columns < 0) | (columns >= self.shape[1])).any():
            raise ValueError(f"logits are wanted outside the {self.shape[0]} × {self.shape[1]} positions")
        if not is_real[rows, columns].all():
            raise ValueError("logits are wanted at a padded position")
