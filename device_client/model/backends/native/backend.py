"""The native backend: C++ kernels, compiled once for this CPU.

Decoding a 4096 × 4096 weight takes about 1 ms on two cores with AVX-512, the fused product of one token half of that:
it reads the codes and nothing else. Other CPUs take the portable path of the same source.
``tests/benchmarks/device_runtime.py`` measures both. Knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from device_client.model.backends.backend import PackedWeight, first_of_each_row
from device_client.model.backends.native.library import KernelLibrary
from device_client.model.backends.workspace import reusable_buffer
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
    def name(self) -> str:
        """``native``."""
        return "native"

    @property
    def workspace_bytes(self) -> int:
        """Bytes of the one buffer it keeps."""
        return self._workspace.numel() * self._workspace.element_size()

    def pack(self, quantized: QuantizedTensor, indices: Tensor) -> PackedWeight:
        """Return the weight with int32 indices and the first value of each row."""
        rows, columns = quantized.shape
        return PackedWeight(quantized, indices.to(torch.int32), first_of_each_row(indices, rows, columns))

    def dequantize(self, weight: PackedWeight, values: Tensor | None = None) -> Tensor:
        """Return W in the workspace."""
        rows, columns = weight.shape
        dense = self._workspace[: rows * columns].view(rows, columns)
        self._library.dequantize(weight, values, dense)
        return dense

    def write_sparse(self, dense: Tensor, weight: PackedWeight, values: Tensor) -> None:
        """Overwrite the sensitive positions of a decoded weight."""
        self._library.write_sparse(weight, values, dense)

    def linear_small(self, inputs: Tensor, weight: PackedWeight, values: Tensor, bias: Tensor | None) -> Tensor:
        """Return x Wᵀ + b from the codes, up to four tokens per reading of them."""
        outputs = inputs.new_empty(inputs.shape[0], weight.shape[0])
        self._library.linear_small(inputs.contiguous(), weight, values, bias, outputs)
        return outputs
