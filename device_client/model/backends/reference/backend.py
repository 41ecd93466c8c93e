"""The reference backend: decode packed codes into one reused buffer, with plain torch.

    w[r, c] = lut[r or 0, code[r, c]] · scale[r, c // g] + bias[r, c // g]

Bit-exact with ``shared.quantization.codec.dequantize``, and several times faster: no large tensor is allocated per
call (page faults would cost ten times the decoding), and rows go in tiles whose indices stay in the cache. At 4 bits
two columns are looked up at once where rows are long: a byte of codes indexes a table of 256 pairs, made per row.
``tests/benchmarks/device_runtime.py`` measures it. Knows nothing about models or sensitive values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from device_client.model.backends.names import BackendName
from device_client.model.backends.packed_weight import PackedWeight
from device_client.model.backends.reference import (
    PAIR_TABLE_VALUES,
    float_tile_values,
    has_pairs,
    pair_table_values,
    tile_codes,
)
from device_client.model.backends.weight import EVERY_ROW
from device_client.model.backends.workspace import reusable_buffer
from device_client.model.points import Point, write_points
from shared.quantization.codec import QuantizedTensor
from shared.quantization.packing import unpack_codes

_PAIR_DTYPES = {2: torch.int32, 4: torch.int64}
"""One integer as wide as two values: what a pair is moved as."""


class ReferenceBackend:
    """Plain torch, on any device: what the other backends are compared with, and what serves where none of them works.

    Args:
        shapes: (out_features, in_features) of every weight that it will decode.
        dtype: Compute dtype.
        device: Where the codes lie.
    """

    def __init__(self, shapes: Iterable[tuple[int, int]], dtype: torch.dtype, device: torch.device) -> None:
        sizes = list(shapes)
        self._workspace = reusable_buffer(max(rows * columns for rows, columns in sizes), dtype, device)
        codes = tile_codes(sizes, device.type)
        self._indices = torch.empty(codes, dtype=torch.int64, device=device)
        self._bytes = torch.empty(-(-codes // 2), dtype=torch.int16, device=device)
        self._table = torch.empty(pair_table_values(sizes, device.type), dtype=dtype, device=device)
        self._floats = torch.empty(float_tile_values(codes, dtype.itemsize), dtype=torch.float32, device=device)
        self._tile_codes = codes

    @property
    def workspace_bytes(self) -> int:
        """Bytes of all buffers it keeps."""
        buffers = (self._workspace, self._indices, self._bytes, self._table, self._floats)
        return sum(buffer.numel() * buffer.element_size() for buffer in buffers)

    @property
    def name(self) -> BackendName:
        """``reference``."""
        return "reference"

    @property
    def token_kernels(self) -> None:
        """None."""

    def pack(self, quantized: QuantizedTensor, indices: Tensor) -> ReferenceWeight:
        """Return the weight with its indices as they are."""
        return ReferenceWeight(self, quantized, indices)

    def pack_table(self, quantized: QuantizedTensor) -> ReferenceWeight:
        """Return the weight without sensitive values."""
        return ReferenceWeight(self, quantized, None)

    def write_points(self, thetas: Sequence[Point], out: Tensor) -> None:
        """Write them in plain torch."""
        write_points(thetas, out)

    def rows_at_once(self, columns: int) -> int:
        """Return how many rows of a weight the workspace has room for."""
        return self._workspace.numel() // columns

    def dequantize(self, tensor: QuantizedTensor) -> Tensor:
        """Return a weight's dense part (out_features, in_features) in the workspace."""
        rows, columns = tensor.shape
        weight = self._workspace[: rows * columns].view(rows, columns)
        tile_rows = self._tile_codes // (columns + columns % 2)
        for start in range(0, rows, tile_rows):
            self._decode(tensor.rows(start, min(start + tile_rows, rows)), weight[start : start + tile_rows])
        return weight

    def _decode(self, tile: QuantizedTensor, out: Tensor) -> None:
        if tile.group_size is None and tile.lut is not None:
            self._look_up(tile, tile.lut, out)
            return
        weight = out if out.dtype == torch.float32 else self._floats[: out.numel()].view(out.shape)
        if tile.lut is None:
            weight.copy_(self._codes(tile))
        else:
            self._look_up(tile, tile.lut, weight)
        if tile.scale is not None:
            _each_group(weight, tile, tile.scale, Tensor.mul_)
        if tile.bias is not None:
            _each_group(weight, tile, tile.bias, Tensor.add_)
        if weight is not out:
            out.copy_(weight)

    def _look_up(self, tile: QuantizedTensor, lut: Tensor, out: Tensor) -> None:
        rows, columns = tile.shape
        if has_pairs(tile.bits, columns) and out.dtype == self._table.dtype:
            self._look_up_pairs(tile, lut, out)
            return
        indices = self._indices[: rows * columns].view(rows, columns)
        indices.copy_(self._codes(tile))
        torch.gather(lut.to(out.dtype).expand(rows, -1), 1, indices, out=out)

    def _look_up_pairs(self, tile: QuantizedTensor, lut: Tensor, out: Tensor) -> None:
        rows, byte_columns = tile.codes.shape
        # [row, high nibble, low nibble, (even column, odd column)]
        table = self._table[: rows * PAIR_TABLE_VALUES].view(rows, 16, 16, 2)
        table[..., 0] = lut[:, None, :]
        table[..., 1] = lut[:, :, None]
        indices = self._indices[: rows * byte_columns].view(rows, byte_columns)
        indices.copy_(tile.codes)
        pair = _PAIR_DTYPES[out.element_size()]
        torch.gather(table.view(rows, PAIR_TABLE_VALUES).view(pair), 1, indices, out=out.view(pair))

    def _codes(self, tile: QuantizedTensor) -> Tensor:
        """Return uint8 codes (rows, columns); on little-endian hosts, as all that torch is built for."""
        if tile.bits == 8:
            return tile.codes
        if tile.bits != 4:
            return unpack_codes(tile.codes, tile.bits, tile.in_features)
        rows, byte_columns = tile.codes.shape
        words = self._bytes[: rows * byte_columns].view(rows, byte_columns)
        words.copy_(tile.codes)  # 0x00HL → 0x0H0L: low byte = even column
        words.bitwise_or_(words << 4).bitwise_and_(0x0F0F)
        return words.view(torch.uint8)[:, : tile.in_features]


class ReferenceWeight(PackedWeight):
    """A weight that is decoded for every product.

    Args:
        backend: Decodes it.
        quantized: The dense part.
        indices: int64 (k,), flat positions of the sensitive values, ascending; None where it has none.
    """

    def __init__(self, backend: ReferenceBackend, quantized: QuantizedTensor, indices: Tensor | None) -> None:
        super().__init__(quantized, indices, torch.int64)
        self._backend = backend

    def _decode(self, values: Tensor | None, rows: slice) -> Tensor:
        start, stop, _ = rows.indices(self.shape[0])
        dense = self._backend.dequantize(self.quantized.rows(start, stop))
        if values is not None:
            self.overwrite(dense, values, rows)
        return dense

    def overwrite(self, dense: Tensor, values: Tensor, rows: slice = EVERY_ROW) -> None:
        """Overwrite the sensitive positions: 0.05 ms by ``index_copy_`` where ``scatter_`` takes 26 ms."""
        positions, own_values = self._own(values, rows)
        if positions.numel():
            dense.view(-1).index_copy_(0, positions, own_values)

    def multiply_few(self, inputs: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        """Return x Wᵀ + b by decoding as many rows at once as there is room for: plain torch has no fused product."""
        count, columns = self.shape
        at_once = self._backend.rows_at_once(columns)
        parts = [slice(start, min(start + at_once, count)) for start in range(0, count, at_once)]
        products = [functional.linear(inputs, self.decode(values, rows)) for rows in parts]
        outputs = products[0] if len(products) == 1 else torch.cat(products, dim=-1)
        return outputs if bias is None else outputs.add_(bias)


def _each_group(weight: Tensor, tile: QuantizedTensor, grouped: Tensor, operation: Callable[..., Tensor]) -> None:
    """Apply ``operation`` in place to each group of columns and its factor or summand, rounding once in float32."""
    rows, columns = weight.shape
    size = tile.group_size or columns
    whole = columns // size
    factors = grouped.to(torch.float32)
    operation(weight.as_strided((rows, whole, size), (weight.stride(0), size, 1)), factors[:, :whole, None])
    if columns % size:
        operation(weight[:, whole * size :], factors[:, whole:])
