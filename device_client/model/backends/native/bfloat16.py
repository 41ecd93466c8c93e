"""Products of many tokens in bfloat16 by the library, and the sensitive values' share of them in float32.

    y = bfloat16(x) · bfloat16(W₀)ᵀ  +  x[:, c] · θ        W₀: the codes, and 0 where a sensitive value stands

A CPU with instructions for bfloat16 multiplies twice as fast in it as in float32, but a perturbation of ε is smaller
than the spacing of a bfloat16 weight: written into W it would be rounded away. Here it never meets that rounding, and
neither do the values themselves. Activations stay float32 between products. What the inputs lose to rounding is nearly
the same at θ + ε·z and θ − ε·z; ``tuning.engines`` measures whether a difference of losses stands clear of the rest.
Every point is multiplied by one decoding, kept in half the bytes of a float32 one. Texts are written as ever: a few
tokens are multiplied from the codes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from device_client.model.backends.names import Products
from device_client.model.backends.native.backend import NativeBackend
from device_client.model.backends.native.library import KernelLibrary
from device_client.model.backends.native.weight import NativeWeight
from shared.quantization.codec import QuantizedTensor

_VALUE_BYTES = 2


class Bfloat16Backend(NativeBackend):
    """The native backend in float32, with products of many tokens in bfloat16.

    Args:
        library: The compiled kernels.
        shapes: (out_features, in_features) of every weight that it will decode.
    """

    def __init__(self, library: KernelLibrary, shapes: Iterable[tuple[int, int]]) -> None:
        super().__init__(library, shapes, torch.float32)

    def _packed(self, quantized: QuantizedTensor, indices: Tensor, replaced: Tensor) -> NativeWeight:
        return Bfloat16Weight(self._library, quantized, indices, replaced, self._workspace)


class Bfloat16Weight(NativeWeight):
    """A weight that is rounded to bfloat16 where it multiplies many tokens, but for its sensitive values.

    Args:
        library: The compiled kernels.
        quantized: The dense part.
        indices: int64 (k,), flat positions of the sensitive values, ascending.
        replaced: float32 (k,), what the codes there stand for.
        workspace: float32, where it is decoded.
    """

    products: Products = "bfloat16"

    def __init__(
        self, library: KernelLibrary, quantized: QuantizedTensor, indices: Tensor, replaced: Tensor, workspace: Tensor
    ) -> None:
        super().__init__(library, quantized, indices, replaced, workspace)
        self._rounded_workspace = workspace.view(torch.bfloat16)
        self._is_rounded_kept = False
        self._rounded: Tensor | None = None

    def multiply(self, stacked: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        """Return the products at every point, over one W₀."""
        dense = self._dense_part()
        outputs = stacked.new_empty(*stacked.shape[:2], self.shape[0])
        for inputs, of_point, out in zip(stacked.contiguous(), values, outputs, strict=True):
            out.copy_(torch.mm(inputs.to(torch.bfloat16), dense.T))
            self.library.add_sparse_products(self.struct(), of_point, inputs, out)  # Equation 24
        return outputs if bias is None else outputs.add_(bias)

    def decoded_bytes(self, value_bytes: int) -> int:  # noqa: ARG002
        """Return those of W₀."""
        return self.shape[0] * self.shape[1] * _VALUE_BYTES

    def keep_decoded(self) -> None:
        """Keep W₀ from the next product on."""
        self._is_rounded_kept = True

    def _dense_part(self) -> Tensor:
        if self._rounded is not None:
            return self._rounded
        rows, columns = self.shape
        dense = self._rounded_workspace[: rows * columns].view(rows, columns)
        zeros = torch.zeros(self.positions.numel(), dtype=torch.bfloat16)
        self.library.dequantize(self.struct(), zeros, dense)
        if self._is_rounded_kept:
            self._rounded = dense = dense.clone()
        return dense

    def _tensors(self) -> Iterator[Tensor]:
        yield from super()._tensors()
        if self._rounded is not None:
            yield self._rounded
