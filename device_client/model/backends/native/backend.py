"""The native backend: C++ kernels, compiled once for this CPU.

Decoding a 4096 × 4096 weight takes about 1 ms on two cores with AVX-512, the fused product of one token half of that:
it reads the codes and nothing else. Other CPUs take the portable path of the same source; what a CPU with a matrix unit
does besides is in ``amx``. ``tests/benchmarks/device_runtime.py`` measures both. Knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor

from device_client.model.backends.names import BackendName
from device_client.model.backends.native.library import KernelLibrary, ProductList, WeightStruct
from device_client.model.backends.packed_weight import PackedWeight
from device_client.model.backends.token_kernels import Factor, KeptHeads, SideBySide, TokenHeads
from device_client.model.backends.weight import EVERY_ROW
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


class NativeWeight(PackedWeight):
    """A weight that the compiled kernels decode, and multiply a few tokens by from its codes.

    Attributes:
        library: The compiled kernels, for codes in the order of these.
        replaced: Compute dtype (k,), what the codes at the positions stand for: looking it up would cost 7 to 12 % of a
            decoded token. None where there are no positions.
        largest: float32 (out_features,), the largest value of any code of each row, without its sign, where the kernels
            need it.

    Args:
        library: The compiled kernels.
        quantized: The dense part.
        indices: int64 (k,), flat positions of the sensitive values, ascending; None where it has none.
        replaced: Compute dtype (k,), or None.
        workspace: Where it is decoded.
        largest: float32 (out_features,), or None.
    """

    def __init__(
        self, library: KernelLibrary, quantized: QuantizedTensor, indices: Tensor | None, replaced: Tensor | None,
        workspace: Tensor, largest: Tensor | None = None,
    ) -> None:  # fmt: skip
        super().__init__(quantized, indices, torch.int32)
        self.library, self.replaced, self._workspace, self.largest = library, replaced, workspace, largest
        self._structs: dict[tuple[int, int], WeightStruct] = {}

    def struct(self, rows: slice = EVERY_ROW) -> WeightStruct:
        """Return some rows as the kernels see them, made once for each of the few tiles that are asked for."""
        start, stop, _ = rows.indices(self.shape[0])
        if (start, stop) not in self._structs:
            largest = None if self.largest is None else self.largest[start:stop]
            self._structs[start, stop] = WeightStruct(
                self.quantized.rows(start, stop), self.row_starts[start : stop + 1], self.positions, self.replaced,
                start, largest,
            )  # fmt: skip
        return self._structs[start, stop]

    def _decode(self, values: Tensor | None, rows: slice) -> Tensor:
        struct, columns = self.struct(rows), self.shape[1]
        dense = self._workspace[: struct.rows * columns].view(struct.rows, columns)
        self.library.dequantize(struct, values, dense)
        return dense

    def overwrite(self, dense: Tensor, values: Tensor, rows: slice = EVERY_ROW) -> None:
        """Overwrite the sensitive positions of a decoded weight."""
        self.library.write_sparse(self.struct(rows), values, dense)

    def multiply_few(self, inputs: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        """Return x Wᵀ + b from the codes, up to four tokens per reading of them."""
        struct = self.struct()
        outputs = inputs.new_empty((*inputs.shape[:-1], struct.rows))
        self.library.linear_small(inputs.contiguous(), struct, values, bias, outputs)
        return outputs

    def _tensors(self) -> Iterator[Tensor]:
        yield from super()._tensors()
        yield from (tensor for tensor in (self.replaced, self.largest) if tensor is not None)


class NativeTokenKernels:
    """Computes with the compiled kernels, on a CPU.

    Args:
        library: The compiled kernels.
    """

    def __init__(self, library: KernelLibrary) -> None:
        self._library = library

    def side_by_side(self, factors: Sequence[Factor]) -> SideBySide:
        """Return products that share what weights of one kind prepare, and are shared out by rows over all of them."""
        return _SideBySide(factors)

    def norm(self, inputs: Tensor, weight: Tensor, epsilon: float, out: Tensor) -> None:
        """Norm each row; sums in float32."""
        self._library.norm(inputs, weight, epsilon, out)

    def attend(self, heads: TokenHeads, kept: KeptHeads, scale: float) -> Tensor:
        """Attend; every head of keys is the work of one thread."""
        self._library.attend(heads, kept, scale)
        return heads.query.view(-1)


class _SideBySide:
    def __init__(self, factors: Sequence[Factor]) -> None:
        rows = [factor.weight.shape[0] for factor in factors]
        self._outputs: tuple[Tensor, ...] = torch.split(factors[0].values.new_empty(sum(rows)), rows)
        by_library: dict[KernelLibrary, list[tuple[WeightStruct, Tensor, Tensor | None, Tensor]]] = {}
        for factor, out in zip(factors, self._outputs, strict=True):
            weight = cast(NativeWeight, factor.weight)
            product = (weight.struct(), factor.values, factor.bias, out)
            by_library.setdefault(weight.library, []).append(product)
        self._products = [(library, ProductList(products)) for library, products in by_library.items()]

    def __call__(self, inputs: Tensor) -> tuple[Tensor, ...]:
        for library, products in self._products:
            library.linear_side_by_side(products, inputs)
        return self._outputs


def _is_plain(vector: Tensor) -> bool:
    return vector.dtype == torch.float32 and vector.device.type == "cpu" and vector.is_contiguous()
