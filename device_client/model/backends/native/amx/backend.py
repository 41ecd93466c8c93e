"""Products in bfloat16 on the matrix unit of a CPU (AMX), from codes in panels: W is never written to memory.

A weight that fits has its codes laid anew, in panels of 16 rows; kernels of their own (``kernels/panels.h``) decode and
multiply them for any number of tokens. Other weights stay as the native backend has them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from device_client.model.backends.names import Products
from device_client.model.backends.native.amx import (
    PANEL_COLUMNS,
    PANEL_ROWS,
    PASS_TOKENS,
    fits_panels,
    placement_lists,
)
from device_client.model.backends.native.backend import NativeBackend
from device_client.model.backends.native.library import KernelLibrary, address_of
from device_client.model.backends.native.weight import NativeWeight
from device_client.model.backends.weight import EVERY_ROW
from device_client.model.backends.workspace import reusable_buffer
from shared.quantization.codec import QuantizedTensor

_PANEL_ROW_BYTES = PANEL_COLUMNS // 2


def may_use_matrix_unit(library: KernelLibrary) -> bool:
    """Return whether the kernels were compiled for a matrix unit and the system lets this process use it."""
    return bool(ctypes.CDLL(str(library.path)).zo_may_use_tiles())


class AmxBackend(NativeBackend):
    """The native backend in bfloat16 where a matrix unit may be used.

    Args:
        library: The compiled kernels, of which ``may_use_matrix_unit``.
        shapes: (out_features, in_features) of every weight that it will decode.
    """

    def __init__(self, library: KernelLibrary, shapes: Iterable[tuple[int, int]]) -> None:
        super().__init__(library, shapes, torch.bfloat16)
        self._panel_library = PanelLibrary(library.path)

    def _packed(self, quantized: QuantizedTensor, indices: Tensor, replaced: Tensor) -> NativeWeight:
        if not fits_panels(quantized.shape, quantized.bits, quantized.group_size):
            return super()._packed(quantized, indices, replaced)
        return AmxWeight(self._panel_library, quantized, indices, replaced, self._workspace)


class AmxWeight(NativeWeight):
    """A weight whose codes lie in panels; a product's bits depend on its own point's tokens alone by construction.

    Args:
        library: The kernels for panels.
        quantized: The dense part, row by row.
        indices: int64 (k,), flat positions of the sensitive values, ascending.
        replaced: bfloat16 (k,), what the codes there stand for.
        workspace: Where it is decoded, and where inputs are packed.
    """

    library: PanelLibrary
    largest: Tensor
    products: Products = "matrix unit"

    def __init__(
        self, library: PanelLibrary, quantized: QuantizedTensor, indices: Tensor, replaced: Tensor, workspace: Tensor
    ) -> None:
        largest = _largest_of_each_row(quantized)
        super().__init__(library, _in_panels(quantized), indices, replaced, workspace, largest)
        self.place_values()

    def place_values(self) -> None:
        """Sort the sensitive values into lists by slice of columns and panel; see ``kernels/at_points.h``.

        int32: where each list begins (lists + 1,), which value (k,), and where in its slice's tiles it goes (k,).
        """
        lists, count = placement_lists(self.shape), self.positions.numel()
        self._placement = [torch.empty(size, dtype=torch.int32) for size in (lists + 1, count, count)]
        struct, addresses = self.struct(), [tensor.data_ptr() for tensor in self._placement]
        self.library.sort_values(struct.weight, struct.sparse(self.positions), *addresses)
        self._places = _Placement(*addresses)

    def decoded_bytes(self, value_bytes: int) -> int:  # noqa: ARG002
        """Return 0."""
        return 0

    def decode(self, values: Tensor | None = None, rows: slice = EVERY_ROW) -> Tensor:
        """Return W, or whole panels of it.

        Raises:
            ValueError: The rows are not whole panels.
        """
        start, stop, _ = rows.indices(self.shape[0])
        if start % PANEL_ROWS or stop % PANEL_ROWS:
            raise ValueError(f"rows {start} to {stop} are not whole panels of {PANEL_ROWS}")
        return super().decode(values, rows)

    def multiply(self, stacked: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        """Return the products at every point, decoded within, in passes of ``PASS_TOKENS``."""
        _check_format(stacked)
        points, tokens, columns = stacked.shape
        outputs = stacked.new_empty(points, tokens, self.shape[0])
        needed = PASS_TOKENS * columns
        scratch = self._workspace if self._workspace.numel() >= needed else self._workspace.new_empty(needed)
        inputs, addresses = stacked.contiguous(), (ctypes.c_void_p * points)(*(each.data_ptr() for each in values))
        self.library.linear_at_points(
            self.struct().weight, ctypes.byref(self._places), inputs.data_ptr(), addresses, address_of(bias),
            outputs.data_ptr(), points, tokens, scratch.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip
        return outputs

    def multiply_few(self, inputs: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        """Return x Wᵀ + b in whole numbers; see ``kernels/digits.h``."""
        _check_format(inputs)
        return super().multiply_few(inputs, values, bias)

    def _tensors(self) -> Iterator[Tensor]:
        yield from super()._tensors()
        yield from self._placement


class PanelLibrary(KernelLibrary):
    """The compiled kernels, for weights whose codes lie in panels; what is no weight's is the same.

    Args:
        path: The shared library.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        pointer, number, long = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
        self._dequantize = self._function("zo_panels_dequantize", *self._dequantize.argtypes)
        self._linear_small = self._function("zo_panels_linear_small", *self._linear_small.argtypes)
        self._linear_side_by_side = self._function("zo_panels_linear_side_by_side", *self._linear_side_by_side.argtypes)
        self.linear_at_points = self._function(
            "zo_panels_linear_at_points", *[pointer] * 6, long, long, pointer, number
        )
        self.sort_values = self._function("zo_panels_sort_values", *[pointer] * 5)


class _Placement(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_void_p) for name in ("starts", "order", "places"))


def _in_panels(quantized: QuantizedTensor) -> QuantizedTensor:
    """Return the same weight with its codes in panels of 16 rows, block by block of 128 columns, in huge pages."""
    rows, row_bytes = quantized.codes.shape
    panels = quantized.codes.view(rows // PANEL_ROWS, PANEL_ROWS, row_bytes // _PANEL_ROW_BYTES, _PANEL_ROW_BYTES)
    codes = reusable_buffer(rows * row_bytes, torch.uint8, quantized.codes.device)
    codes.view(len(panels), -1, PANEL_ROWS, _PANEL_ROW_BYTES).copy_(panels.transpose(1, 2))
    return replace(quantized, codes=codes.view(rows, row_bytes))


def _largest_of_each_row(quantized: QuantizedTensor) -> Tensor:
    """Return the largest value that any code of each row can stand for, without its sign, float32 (out_features,)."""
    rows, _ = quantized.shape
    table = torch.arange(1 << quantized.bits)[None] if quantized.lut is None else quantized.lut
    ends = torch.stack(table.float().aminmax(dim=1)).expand(2, rows)[..., None]  # a group's values lie between them
    if quantized.scale is not None:
        ends = ends * quantized.scale.float()
    if quantized.bias is not None:
        ends = ends + quantized.bias.float()
    return ends.abs().amax(dim=(0, 2))


def _check_format(inputs: Tensor) -> None:
    if inputs.dtype != torch.bfloat16:
        raise TypeError(f"inputs are {inputs.dtype}; a weight in panels is multiplied in bfloat16")
