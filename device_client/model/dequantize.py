"""The reference backend: decode packed codes into one reused buffer, with plain torch.

    w[r, c] = lut[r or 0, code[r, c]] · scale[r, c // g] + bias[r, c // g]

Bit-exact with ``shared.quantization.codec.dequantize``. Knows nothing about models or sensitive values.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from shared.quantization.codec import QuantizedTensor, dequantize


class DequantizeBackend(Protocol):
    """Decodes weights one after the other; what it returns is valid until the next call."""

    @property
    def workspace_bytes(self) -> int:
        """Bytes of all buffers it keeps."""

    def dequantize(self, tensor: QuantizedTensor) -> Tensor:
        """Return the weight (out_features, in_features), contiguous, in the compute dtype; the caller may write to it."""


class EagerDequantizer:
    """Decodes into one buffer as large as the largest weight.

    Args:
        largest_element_count: Elements of the largest weight.
        dtype: Compute dtype.
        device: Where the codes lie.
    """

    def __init__(self, largest_element_count: int, dtype: torch.dtype, device: torch.device) -> None:
        self._workspace = torch.empty(largest_element_count, dtype=dtype, device=device)

    @property
    def workspace_bytes(self) -> int:
        """Bytes of all buffers it keeps."""
        return self._workspace.numel() * self._workspace.element_size()

    def dequantize(self, tensor: QuantizedTensor) -> Tensor:
        """Return the weight in the workspace."""
        rows, columns = tensor.shape
        return dequantize(tensor, out=self._workspace[: rows * columns].view(rows, columns))
