"""The native backend: C++ kernels, compiled once for this CPU.

Decoding a 4096 × 4096 weight takes about 1 ms on two cores with AVX-512, the fused product of one token half of that:
it reads the codes and nothing else. CPUs with AVX2 or NEON make the same bits; others take the portable path of the
same source; what a CPU with a matrix unit does besides is in ``amx``. ``tests/benchmarks/device_runtime.py`` measures
both. Knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from device_client.model.backends.names import BackendName
from device_client.model.backends.native.library import KernelLibrary, WeightStruct
from device_client.model.backends.native.token_kernels import NativeTokenKernels
from device_client.model.backends.native.weight import NativeWeight
from device_client.model.backends.workspace import reusable_buffer
from device_client.model.points import PerturbedPoint, Point, write_points
from shared.quantization.codec import QuantizedTensor


class NativeBackend:
    """Decodes and multiplies with the compiled kernels, on a CPU.

    Args:
        library: The compiled kernels.
        shapes: (out_features, in_features) of every weight that it will decode.
        dtype: Compute dtype: float32, float16 or bfloat16.
    """

    def __init__(self, library: KernelLibrary, shapes: Iterable[tuple[int, int]], dtype: torch.dtype) -> None:
        self._library = library
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

    def pack(self, quantized: QuantizedTensor, indices: Tensor) -> NativeWeight:
        """Return the weight with int32 indices and what the values replace."""
        rows, columns = quantized.shape
        dense = self._workspace[: rows * columns].view(rows, columns)
        self._library.dequantize(WeightStruct(quantized), None, dense)
        return self._packed(quantized, indices, dense.view(-1)[indices])

    def _packed(self, quantized: QuantizedTensor, indices: Tensor, replaced: Tensor) -> NativeWeight:
        return NativeWeight(self._library, quantized, indices, replaced, self._workspace)

    def pack_table(self, quantized: QuantizedTensor) -> NativeWeight:
        """Return the weight without sensitive values, its codes row by row on any CPU."""
        return NativeWeight(self._library, quantized, None, None, self._workspace)

    def write_points(self, thetas: Sequence[Point], out: Tensor) -> None:
        """Write all perturbed points in one pass over θ and z; others in plain torch."""
        perturbed = [theta for theta in thetas if isinstance(theta, PerturbedPoint)]
        if len(perturbed) == len(thetas) and all(_is_plain(each.theta) and _is_plain(each.z) for each in perturbed):
            self._library.write_points(perturbed, out)
        else:
            write_points(thetas, out)


def _is_plain(vector: Tensor) -> bool:
    return vector.dtype == torch.float32 and vector.device.type == "cpu" and vector.is_contiguous()
