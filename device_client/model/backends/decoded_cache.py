"""Keeps decoded weights while there is room.

A weight that is kept costs no decoding any more: where memory is plentiful a small model runs as fast as an unquantised
one, a large one gains in proportion to the part that is kept. Whole weights are kept; some rows of one are a view.
What is computed does not change by a bit. A weight that brings a product of its own never comes here to be decoded.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from device_client.model.backends.backend import LinearBackend
from device_client.model.backends.names import BackendName
from device_client.model.backends.packed_weight import PackedWeight
from device_client.model.backends.token_kernels import TokenKernels
from device_client.model.points import Point
from shared.quantization.codec import QuantizedTensor


class DecodedCache:
    """A backend that remembers what another one decoded.

    Args:
        backend: Decodes and multiplies.
        budget_bytes: What the kept weights may occupy at most; 0 keeps none.
    """

    def __init__(self, backend: LinearBackend, budget_bytes: int) -> None:
        self._backend = backend
        self._room_bytes = budget_bytes
        self._kept: dict[int, tuple[PackedWeight, Tensor]] = {}

    @property
    def name(self) -> BackendName:
        """The other backend's."""
        return self._backend.name

    @property
    def workspace_bytes(self) -> int:
        """Bytes of the kept weights and of the other backend's buffers."""
        kept = sum(weight.numel() * weight.element_size() for _, weight in self._kept.values())
        return kept + self._backend.workspace_bytes

    @property
    def token_kernels(self) -> TokenKernels | None:
        """The other backend's."""
        return self._backend.token_kernels

    def pack(self, quantized: QuantizedTensor, indices: Tensor) -> PackedWeight:
        """Return the weight as the other backend keeps it."""
        return self._backend.pack(quantized, indices)

    def dequantize(self, weight: PackedWeight, values: Tensor | None = None) -> Tensor:
        """Return W, decoded now or earlier."""
        whole = None if values is None else self._whole(weight.whole, values)
        if values is None or whole is None:
            return self._backend.dequantize(weight, values)
        dense = whole[weight.place]
        self.write_sparse(dense, weight, values)
        return dense

    def _whole(self, weight: PackedWeight, values: Tensor) -> Tensor | None:
        """Return a whole weight's dense part where it is kept or, from now on, can be."""
        if id(weight) not in self._kept:
            size = weight.shape[0] * weight.shape[1] * values.element_size()
            if size > self._room_bytes:
                return None
            self._room_bytes -= size
            # Holding the weight keeps its id from being used again.
            self._kept[id(weight)] = (weight, self._backend.dequantize(weight).clone())
        return self._kept[id(weight)][1]

    def write_sparse(self, dense: Tensor, weight: PackedWeight, values: Tensor) -> None:
        """Overwrite the sensitive positions of a decoded weight."""
        self._backend.write_sparse(dense, weight, values)

    def write_points(self, thetas: Sequence[Point], out: Tensor) -> None:
        """Write them as the other backend does."""
        self._backend.write_points(thetas, out)

    def linear_small(self, inputs: Tensor, weight: PackedWeight, values: Tensor, bias: Tensor | None) -> Tensor:
        """Multiply as the other backend does."""
        return self._backend.linear_small(inputs, weight, values, bias)
