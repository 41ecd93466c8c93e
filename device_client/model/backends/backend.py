"""What a backend must be able to do: decode a weight, write sensitive values over it, or multiply by it directly.

    many tokens       W = dequantise(codes);  W[index] = value;  y = x Wᵀ          SparseAdd, Equation 26
    few tokens        y = x dequantise(codes)ᵀ + x[c] (value − decoded[r, c])      SparseAddMM, Equation 24

Every backend decodes to the same bits, and after that all multiply with the same library call; so what is tuned or
measured with ``dequantize`` does not depend on the backend. Only in bfloat16 may a backend bring a product of its own
for a weight (``PackedWeight.at_points``), which sums in another order. So does ``linear_small``, in float32 or in whole
numbers; where it rounds the sum alone to the compute dtype, and not each weight, it is nearer to the exact product.
Knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from device_client.model.backends.names import BackendName
from device_client.model.backends.packed_weight import PackedWeight
from device_client.model.backends.token_kernels import TokenKernels
from device_client.model.points import Point
from shared.quantization.codec import QuantizedTensor


class LinearBackend(Protocol):
    """Computes with packed weights; what ``dequantize`` returns is valid until the next weight is used."""

    @property
    def name(self) -> BackendName:
        """What it is called in options, records and results."""

    @property
    def workspace_bytes(self) -> int:
        """Bytes of all buffers it keeps."""

    @property
    def token_kernels(self) -> TokenKernels | None:
        """What it has for one token beside ``linear_small``, or None."""

    def pack(self, quantized: QuantizedTensor, indices: Tensor) -> PackedWeight:
        """Return the weight as this backend keeps it.

        Args:
            quantized: The dense part, on the compute device.
            indices: int64 (k,), flat positions of the sensitive values, ascending, on the compute device.
        """

    def dequantize(self, weight: PackedWeight, values: Tensor | None = None) -> Tensor:
        """Return W (out_features, in_features), contiguous, in the compute dtype.

        The caller may write to it, to the positions of the sensitive values only.

        Args:
            weight: The packed weight.
            values: Compute dtype (k,), the sensitive values of the whole weight; None leaves it open what stands at
                their positions.
        """

    def write_sparse(self, dense: Tensor, weight: PackedWeight, values: Tensor) -> None:
        """Overwrite the sensitive positions of a decoded weight with other ``values``, compute dtype (k,)."""

    def write_points(self, thetas: Sequence[Point], out: Tensor) -> None:
        """Write the values of every θ to ``out``, compute dtype (points, k), each rounded once: alike in all."""

    def linear_small(self, inputs: Tensor, weight: PackedWeight, values: Tensor, bias: Tensor | None) -> Tensor:
        """Return x Wᵀ + b without decoding W as a whole; for one to a few tokens.

        Args:
            inputs: Compute dtype (…, in_features).
            weight: The packed weight.
            values: Compute dtype (k,), the sensitive values.
            bias: Compute dtype (out_features,), or None.

        Returns:
            Compute dtype (…, out_features).
        """
