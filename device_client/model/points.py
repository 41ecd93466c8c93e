"""A θ to evaluate a model at that need not exist as a whole: at 7B each is a vector of 26 MB."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Point(Protocol):
    """θ, float32 (k,), of which parts can be taken; a tensor is one."""

    @property
    def shape(self) -> torch.Size:
        """(k,)."""

    @property
    def dtype(self) -> torch.dtype:
        """float32."""

    def __getitem__(self, where: slice, /) -> Tensor:
        """Return these values of θ."""
