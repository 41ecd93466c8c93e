"""The Triton backend: launches the kernels on a weight's tensors, on the device where they lie.

Tiles are chosen from the shape alone: timing candidates would let the order of a sum, and so its last bits, differ
between two runs. A program of ``linear_small`` takes 4 rows, one per warp, whose 32 threads read 16 bytes of codes
each: 4,096 rows make 1,024 programs, and a key projection of 1,024 rows still keeps the 8 SMs of an Orin Nano busy.
Tested in Triton's interpreter, and compiled for Jetson Orin and Ada; not yet run or timed on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

from device_client.model.backends.names import BackendName
from device_client.model.backends.packed_weight import PackedWeight
from device_client.model.backends.triton import kernels
from device_client.model.backends.weight import EVERY_ROW
from device_client.model.backends.workspace import reusable_buffer
from device_client.model.points import Point, write_points
from shared.quantization.codec import QuantizedTensor
from shared.sensitivity_mask import INDEX_LIMIT

MOST_TOKENS = 8
"""Tokens of one launch of ``linear_small``; for each count up to this a kernel is compiled on its first use."""

_TILE_ROWS = 4
_TILE_SPAN = 512
_DEQUANTIZE_ROWS = 4
_SPARSE_AT_ONCE = 32
_SCATTER_BLOCK = 512
_WARPS = 4
_WORDS = {2: torch.int32, 4: torch.int64}
"""One integer as wide as two values."""


class TritonBackend:
    """Triton's kernels on CUDA; on a CPU under Triton's interpreter, for tests.

    Args:
        shapes: (out_features, in_features) of every weight that it will decode.
        dtype: Compute dtype: float16, bfloat16 or float32.
        device: Where the codes lie.
    """

    def __init__(self, shapes: Iterable[tuple[int, int]], dtype: torch.dtype, device: torch.device) -> None:
        self._workspace = reusable_buffer(max(rows * columns for rows, columns in shapes), dtype, device)
        self._device = device

    @property
    def name(self) -> BackendName:
        """``triton``."""
        return "triton"

    @property
    def workspace_bytes(self) -> int:
        """Bytes of all buffers it keeps."""
        return self._workspace.numel() * self._workspace.element_size()

    @property
    def token_kernels(self) -> None:
        """None."""

    def pack(self, quantized: QuantizedTensor, indices: Tensor) -> TritonWeight:
        """Return the weight with its indices in int32 where they fit."""
        return TritonWeight(self, quantized, indices)

    def pack_table(self, quantized: QuantizedTensor) -> TritonWeight:
        """Return the weight without sensitive values."""
        return TritonWeight(self, quantized, None)

    def write_points(self, thetas: Sequence[Point], out: Tensor) -> None:
        """Write them in plain torch."""
        write_points(thetas, out)

    def room_for(self, rows: int, columns: int) -> Tensor:
        """Return the beginning of the workspace, compute dtype (rows, columns)."""
        return self._workspace[: rows * columns].view(rows, columns)

    def on_device(self) -> AbstractContextManager[Any]:
        """Return a context in which kernels are launched where the tensors lie."""
        # Triton launches on the current device, whatever the tensors lie on
        return torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext()


class TritonWeight(PackedWeight):
    """A weight that Triton's kernels decode, and multiply a few tokens by from its codes.

    Args:
        backend: Lends the workspace.
        quantized: The dense part.
        indices: int64 (k,), flat positions of the sensitive values, ascending; None where it has none.
    """

    def __init__(self, backend: TritonBackend, quantized: QuantizedTensor, indices: Tensor | None) -> None:
        rows, columns = quantized.shape
        super().__init__(quantized, indices, torch.int32 if rows * columns <= INDEX_LIMIT else torch.int64)
        self._backend = backend

    def _decode(self, values: Tensor | None, rows: slice) -> Tensor:
        start, stop, _ = rows.indices(self.shape[0])
        tensor = self.quantized.rows(start, stop)
        count, columns = tensor.shape
        dense = self._backend.room_for(count, columns)
        row_bytes = tensor.codes.shape[1]
        span = row_bytes if tensor.bits == 4 else columns
        block = min(_TILE_SPAN, triton.next_power_of_2(span))
        grid = (triton.cdiv(count, _DEQUANTIZE_ROWS), triton.cdiv(span, block))
        arguments = (*_parts(tensor), dense, count, columns, row_bytes, _groups(tensor))
        form = _form(tensor)
        with self._backend.on_device():
            if tensor.bits == 4:
                kernels.dequantize_pairs[grid](*arguments, **form, ROWS=_DEQUANTIZE_ROWS, BYTES=block, num_warps=_WARPS)
            else:
                kernels.dequantize_columns[grid](
                    *arguments, BITS=tensor.bits, **form, ROWS=_DEQUANTIZE_ROWS, COLUMNS=block, num_warps=_WARPS
                )
        if values is not None:
            self.overwrite(dense, values, rows)
        return dense

    def overwrite(self, dense: Tensor, values: Tensor, rows: slice = EVERY_ROW) -> None:
        """Overwrite the sensitive positions, in one launch."""
        positions, own_values = self._own(values, rows)
        count = positions.numel()
        if count:
            grid = (triton.cdiv(count, _SCATTER_BLOCK),)
            with self._backend.on_device():
                kernels.write_sparse[grid](dense, positions, own_values, count, BLOCK=_SCATTER_BLOCK)

    def multiply_few(self, inputs: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        """Return x Wᵀ + b from the codes, in launches of up to ``MOST_TOKENS`` tokens."""
        rows, columns = self.shape
        own_values = values if self.positions.numel() else None
        tokens = inputs.reshape(-1, columns).contiguous()
        out = tokens.new_empty(len(tokens), rows)
        with self._backend.on_device():
            for first in range(0, len(tokens), MOST_TOKENS):
                some = slice(first, first + MOST_TOKENS)
                _launch_linear_small(tokens[some], self, own_values, bias, out[some])
        return out.view(*inputs.shape[:-1], rows)


def _launch_linear_small(
    inputs: Tensor, weight: TritonWeight, values: Tensor | None, bias: Tensor | None, out: Tensor
) -> None:
    tensor = weight.quantized
    rows, columns = tensor.shape
    row_bytes = tensor.codes.shape[1]
    is_paired = tensor.bits == 4 and columns % 2 == 0
    span = triton.next_power_of_2(row_bytes if is_paired else columns)
    kernels.linear_small[(triton.cdiv(rows, _TILE_ROWS),)](
        inputs,
        inputs.view(_WORDS[inputs.element_size()]) if is_paired else inputs,
        *_parts(tensor),
        weight.positions,
        weight.row_starts,
        values,
        bias,
        out,
        rows,
        columns,
        row_bytes,
        _groups(tensor),
        BITS=tensor.bits,
        **_form(tensor),
        TOKENS=inputs.shape[0],
        LANES=triton.next_power_of_2(inputs.shape[0]),
        PAIRED=is_paired,
        WIDTH=8 * inputs.element_size(),
        ROWS=_TILE_ROWS,
        SPAN=min(_TILE_SPAN, span),
        COUNT=_SPARSE_AT_ONCE,
        num_warps=_WARPS,
    )


def _parts(tensor: QuantizedTensor) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    return tensor.codes, tensor.lut, tensor.scale, tensor.bias


def _groups(tensor: QuantizedTensor) -> int:
    return 1 if tensor.group_size is None else -(-tensor.in_features // tensor.group_size)


def _form(tensor: QuantizedTensor) -> dict[str, int]:
    """Return what a kernel is compiled for."""
    has_own_lut = tensor.lut is not None and tensor.lut.shape[0] > 1
    return {"LUT_STRIDE": 1 << tensor.bits if has_own_lut else 0, "GROUP_SIZE": tensor.group_size or 1}
