"""A weight of the native backend: its codes, what the kernels need beside them, and products of a few tokens."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from device_client.model.backends.native.library import KernelLibrary, WeightStruct
from device_client.model.backends.packed_weight import PackedWeight
from device_client.model.backends.weight import EVERY_ROW
from shared.quantization.codec import QuantizedTensor


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
