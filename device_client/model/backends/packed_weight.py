"""What the weights of all backends have in common: codes, positions of sensitive values, and the library's products.

A weight that is kept decoded costs no decoding any more: where memory is plentiful a small model runs as fast as an
unquantised one, a large one gains in proportion to the part that is kept. Whole weights are kept; some rows are a view.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from device_client.model.backends.library_product import multiply_decoded
from device_client.model.backends.names import Products
from device_client.model.backends.weight import EVERY_ROW
from shared.quantization.codec import QuantizedTensor


class PackedWeight(ABC):
    """A ``Weight`` whose backend decodes it, overwrites its sensitive values, and multiplies a few tokens by it.

    Attributes:
        quantized: The dense part, as the backend keeps it.
        positions: ``position_dtype`` (k,), flat positions of the sensitive values, ascending.
        row_starts: int32 (out_features + 1,): the values of row r are those from row_starts[r] to row_starts[r + 1].

    Args:
        quantized: The dense part.
        indices: int64 (k,), flat positions of the sensitive values, ascending; None where it has none.
        position_dtype: What they are kept in.
    """

    products: Products = "library"

    def __init__(self, quantized: QuantizedTensor, indices: Tensor | None, position_dtype: torch.dtype) -> None:
        rows, columns = quantized.shape
        device = quantized.codes.device
        indices = torch.empty(0, dtype=torch.int64, device=device) if indices is None else indices
        borders = torch.arange(rows + 1, device=device, dtype=torch.int64) * columns
        self.quantized = quantized
        self.positions = indices.to(position_dtype)
        self.row_starts = torch.searchsorted(indices, borders).to(torch.int32)
        self._is_kept = False
        self._kept: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)."""
        return self.quantized.shape

    @property
    def kept_bytes(self) -> int:
        """Bytes of all tensors that it holds."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._tensors())

    def decode(self, values: Tensor | None = None, rows: slice = EVERY_ROW) -> Tensor:
        """Return W or some rows of it, decoded now or earlier."""
        if values is None or not self._is_kept:
            return self._decode(values, rows)
        if self._kept is None:
            self._kept = self._decode(None, EVERY_ROW).clone()
        dense = self._kept[rows]
        self.overwrite(dense, values, rows)
        return dense

    def decoded_bytes(self, value_bytes: int) -> int:
        """Return the bytes of all its values."""
        return self.shape[0] * self.shape[1] * value_bytes

    def keep_decoded(self) -> None:
        """Keep W from the next time that it is decoded with values."""
        self._is_kept = True

    def multiply(self, stacked: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        """Return the library's products at every point."""
        return multiply_decoded(self, stacked, values, bias)

    @abstractmethod
    def _decode(self, values: Tensor | None, rows: slice) -> Tensor:
        """Return W or some rows of it from the codes, in the workspace."""

    @abstractmethod
    def overwrite(self, dense: Tensor, values: Tensor, rows: slice = EVERY_ROW) -> None:
        """Overwrite the sensitive positions of a decoded weight."""

    @abstractmethod
    def multiply_few(self, inputs: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        """Return x Wᵀ + b without decoding W as a whole."""

    def _own(self, values: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        """Return the positions that lie in some rows, counted from their beginning, and their values."""
        if rows == EVERY_ROW:
            return self.positions, values
        start, stop, _ = rows.indices(self.shape[0])
        begin, end = int(self.row_starts[start]), int(self.row_starts[stop])
        return self.positions[begin:end] - start * self.shape[1], values[begin:end]

    def _tensors(self) -> Iterator[Tensor]:
        yield from self.quantized.parts.values()
        yield self.positions
        yield self.row_starts
        if self._kept is not None:
            yield self._kept
