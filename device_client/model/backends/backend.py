"""What packs weights and holds the buffers that all of them share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from device_client.model.backends.names import BackendName
from device_client.model.backends.token_kernels import TokenKernels
from device_client.model.backends.weight import Weight
from device_client.model.points import Point
from shared.quantization.codec import QuantizedTensor


class LinearBackend(Protocol):
    """One way to keep weights and to compute with them."""

    @property
    def name(self) -> BackendName:
        """What it is called in options, records and results."""

    @property
    def workspace_bytes(self) -> int:
        """Bytes of all buffers it keeps."""

    @property
    def token_kernels(self) -> TokenKernels | None:
        """What it has for one token beside ``Weight.multiply_few``, or None."""

    def pack(self, quantized: QuantizedTensor, indices: Tensor) -> Weight:
        """Return the weight as this backend keeps it.

        Args:
            quantized: The dense part, on the compute device.
            indices: int64 (k,), flat positions of the sensitive values, ascending, on the compute device.
        """

    def pack_table(self, quantized: QuantizedTensor) -> Weight:
        """Return a weight without sensitive values over these very codes: an embedding may look its rows up in them."""

    def write_points(self, thetas: Sequence[Point], out: Tensor) -> None:
        """Write the values of every θ to ``out``, compute dtype (points, k), each rounded once: alike in all."""
