"""The native backend: C++ kernels, compiled once for this CPU.

Decoding a 4096 × 4096 weight takes about 1 ms on two cores with AVX-512, the fused product of one token half of that:
it reads the codes and nothing else. Other CPUs take the portable path of the same source. A CPU with a matrix unit
(AMX) multiplies in bfloat16 from the codes for any number of tokens: the weight is never written to memory at all.
``tests/benchmarks/device_runtime.py`` measures both. Knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from device_client.model.backends.names import BackendName
from device_client.model.backends.native.library import Described, KernelLibrary, described
from device_client.model.backends.native.panels import PanelProduct, check_format, with_panels
from device_client.model.backends.native.token_kernels import NativeTokenKernels
from device_client.model.backends.packed_weight import PackedWeight, first_of_each_row
from device_client.model.backends.workspace import reusable_buffer
from device_client.model.points import PerturbedPoint, Point, write_points
from shared.quantization.codec import QuantizedTensor


class NativeBackend:
    """Decodes and multiplies with the compiled kernels, on a CPU.

    Args:
        library: The compiled kernels.
        shapes: (out_features, in_features) of every weight that it will decode.
        dtype: Compute dtype: float32, float16 or bfloat16.
        matrix_unit: Whether it may multiply in bfloat16 itself, on the CPU's matrix unit.
    """

    def __init__(
        self,
        library: KernelLibrary,
        shapes: Iterable[tuple[int, int]],
        dtype: torch.dtype,
        *,
        matrix_unit: bool = True,
    ) -> None:
        self._library = library
        self._matrix_unit = matrix_unit and dtype == torch.bfloat16
        self._workspace = reusable_buffer(max(rows * columns for rows, columns in shapes), dtype, torch.device("cpu"))

    @property
    def name(self) -> BackendName:
        """``native``."""
        return "native"

    @property
    def workspace_bytes(self) -> int:
        """Bytes of the one buffer it keeps."""
        return self._workspace.numel() * self._workspace.element_size()

    @property
    def token_kernels(self) -> NativeTokenKernels:
        """Its own."""
        return NativeTokenKernels(self._library)

    def pack(self, quantized: QuantizedTensor, indices: Tensor) -> PackedWeight:
        """Return the weight with int32 indices and what the values replace; its codes in panels where they can be."""
        weight = PackedWeight(quantized, indices.to(torch.int32), first_of_each_row(indices, *quantized.shape))
        weight = replace(weight, replaced=self.dequantize(weight).view(-1)[indices])
        in_panels = self._matrix_unit and self._library.fits_panels(quantized)
        if in_panels:
            weight = replace(weight, quantized=with_panels(quantized), in_panels=True)
        weight = replace(weight, described=Described(weight))
        if not in_panels:
            return weight
        product = PanelProduct(self._library, self._library.placement(weight), self._workspace)
        return replace(weight, at_points=product)

    def dequantize(self, weight: PackedWeight, values: Tensor | None = None) -> Tensor:
        """Return W in the workspace."""
        rows, columns = weight.shape
        dense = self._workspace[: rows * columns].view(rows, columns)
        self._library.dequantize(described(weight), values, dense)
        return dense

    def write_sparse(self, dense: Tensor, weight: PackedWeight, values: Tensor) -> None:
        """Overwrite the sensitive positions of a decoded weight."""
        self._library.write_sparse(described(weight), values, dense)

    def write_points(self, thetas: Sequence[Point], out: Tensor) -> None:
        """Write all perturbed points in one pass over θ and z; others in plain torch."""
        perturbed = [theta for theta in thetas if isinstance(theta, PerturbedPoint)]
        if len(perturbed) == len(thetas) and all(_is_plain(each.theta) and _is_plain(each.z) for each in perturbed):
            self._library.write_points(perturbed, out)
        else:
            write_points(thetas, out)

    def linear_small(self, inputs: Tensor, weight: PackedWeight, values: Tensor, bias: Tensor | None) -> Tensor:
        """Return x Wᵀ + b from the codes, up to four tokens per reading of them."""
        if weight.in_panels:
            check_format(inputs)
        seen = described(weight)
        outputs = inputs.new_empty((*inputs.shape[:-1], seen.rows))
        self._library.linear_small(inputs.contiguous(), seen, values, bias, outputs)
        return outputs


def _is_plain(vector: Tensor) -> bool:
    return vector.dtype == torch.float32 and vector.device.type == "cpu" and vector.is_contiguous()
