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
from device_client.model.backends.packed_weight import PackedWeight, first_of_each_row
from device_client.model.backends.triton import kernels
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

    def pack(self, quantized: QuantizedTensor, indices: Tensor) -> PackedWeight:
        """Return the weight with its indices in int32 where they fit, and the start of each row among them."""
        rows, columns = quantized.shape
        narrow = indices.to(torch.int32) if rows * columns <= INDEX_LIMIT else indices
        return PackedWeight(quantized, narrow, first_of_each_row(indices, rows, columns))

    def dequantize(self, weight: PackedWeight, values: Tensor | None = None) -> Tensor:
        """Return W in the workspace."""
        dense = self._decoded(weight)
        if values is not None:
            self.write_sparse(dense, weight, values)
        return dense

    def _decoded(self, weight: PackedWeight) -> Tensor:
        rows, columns = weight.shape
        dense = self._workspace[: rows * columns].view(rows, columns)
        tensor = weight.quantized
        row_bytes = tensor.codes.shape[1]
        span = row_bytes if tensor.bits == 4 else columns
        block = min(_TILE_SPAN, triton.next_power_of_2(span))
        grid = (triton.cdiv(rows, _DEQUANTIZE_ROWS), triton.cdiv(span, block))
        arguments = (*_parts(tensor), dense, rows, columns, row_bytes, _groups(tensor))
        form = _form(tensor)
        with self._on_device():
            if tensor.bits == 4:
                kernels.dequantize_pairs[grid](*arguments, **form, ROWS=_DEQUANTIZE_ROWS, BYTES=block, num_warps=_WARPS)
            else:
                kernels.dequantize_columns[grid](
                    *arguments, BITS=tensor.bits, **form, ROWS=_DEQUANTIZE_ROWS, COLUMNS=block, num_warps=_WARPS
                )
        return dense

    def write_sparse(self, dense: Tensor, weight: PackedWeight, values: Tensor) -> None:
        """Overwrite the sensitive positions, in one launch."""
        indices, own_values = weight.own(values)
        count = indices.numel()
        if count:
            grid = (triton.cdiv(count, _SCATTER_BLOCK),)
            with self._on_device():
                kernels.write_sparse[grid](dense, indices, own_values, count, BLOCK=_SCATTER_BLOCK)

    def write_points(self, thetas: Sequence[Point], out: Tensor) -> None:
        """Write them in plain torch."""
        write_points(thetas, out)

    def linear_small(self, inputs: Tensor, weight: PackedWeight, values: Tensor, bias: Tensor | None) -> Tensor:
        """Return x Wᵀ + b from the codes, in launches of up to ``MOST_TOKENS`` tokens."""
        if weight.part_of is not None:
            raise ValueError("the fused product takes whole weights only")
        return self._multiply(inputs, weight, values if weight.indices.numel() else None, bias)

    def linear_dense_part(self, inputs: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
        """Return x dequantise(codes)ᵀ + b, without sensitive values: what their share of the time is measured by."""
        return self._multiply(inputs, weight, None, bias)

    def _multiply(self, inputs: Tensor, weight: PackedWeight, values: Tensor | None, bias: Tensor | None) -> Tensor:
        rows, columns = weight.shape
        tokens = inputs.reshape(-1, columns).contiguous()
        out = tokens.new_empty(len(tokens), rows)
        with self._on_device():
            for first in range(0, len(tokens), MOST_TOKENS):
                some = slice(first, first + MOST_TOKENS)
                _launch_linear_small(tokens[some], weight, values, bias, out[some])
        return out.view(*inputs.shape[:-1], rows)

    def _on_device(self) -> AbstractContextManager[Any]:
        # Triton launches on the current device, whatever the tensors lie on
        return torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext()


def _launch_linear_small(
    inputs: Tensor, weight: PackedWeight, values: Tensor | None, bias: Tensor | None, out: Tensor
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
        weight.indices,
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
