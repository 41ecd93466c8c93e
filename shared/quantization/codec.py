"""The dense part of one weight: codes, codebook, group scales; and the one formula that decodes it.

    w[r, c] = lut[r or 0, code[r, c]] · scale[r, c // g] + bias[r, c // g]

Each part is optional: without ``lut`` the code itself is the value (0 … 2^bits − 1), without ``scale`` it is 1,
without ``bias`` 0. So one formula serves

    per-row codebook    lut (out, 2^bits)                          SqueezeLLM's non-uniform quantisation
    shared codebook     lut (1, 2^bits), scale (out, ceil(in/g))   NF4 and kin
    uniform             scale and bias (out, ceil(in/g))           asymmetric integers

Symbols: r row (out_features) · c column (in_features) · g ``group_size``; the last group of a row may be shorter.
Arithmetic is float32, one rounding to the target dtype at the end; the multiply and the add round separately, so that
every backend can be compared bit for bit. What stands at a masked position does not matter: the sensitive value
*replaces* it (W[index] = value), hence no zero-mapping correction of Equation 26 is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shared.quantization.packing import BIT_WIDTHS, packed_row_bytes, unpack_codes


@dataclass(frozen=True, slots=True)
class QuantizedTensor:
    """One quantised weight.

    Attributes:
        codes: uint8 (out_features, ceil(in_features·bits/8)), packed as ``packing`` says.
        in_features: Columns of the weight.
        bits: 2, 3, 4 or 8.
        lut: float16 (out_features, 2^bits) or (1, 2^bits), or None.
        scale: float16 (out_features, ceil(in_features/group_size)), or None.
        bias: float16, shaped like ``scale``, or None.
        group_size: Columns per group; None where there is neither scale nor bias.
    """

    codes: Tensor
    in_features: int
    bits: int
    lut: Tensor | None = None
    scale: Tensor | None = None
    bias: Tensor | None = None
    group_size: int | None = None

    def __post_init__(self) -> None:
        if self.bits not in BIT_WIDTHS:
            raise ValueError(f"bits is {self.bits}; it must be one of {BIT_WIDTHS}")
        rows = self.codes.shape[0]
        _require("codes", self.codes, torch.uint8, (rows, packed_row_bytes(self.in_features, self.bits)))
        if self.lut is not None:
            table_rows = self.lut.shape[0]
            if table_rows not in (1, rows):
                raise ValueError(f"lut has {table_rows} rows; needed 1 or {rows}")
            _require("lut", self.lut, torch.float16, (table_rows, 1 << self.bits))
        grouped = [("scale", self.scale), ("bias", self.bias)]
        if self.group_size is None:
            if self.scale is not None or self.bias is not None:
                raise ValueError("scale and bias need a group_size")
            return
        if self.group_size < 1:
            raise ValueError(f"group_size is {self.group_size}; it must be at least 1")
        for name, tensor in grouped:
            if tensor is not None:
                _require(name, tensor, torch.float16, (rows, -(-self.in_features // self.group_size)))

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)."""
        return self.codes.shape[0], self.in_features

    def rows(self, start: int, stop: int) -> QuantizedTensor:
        """Return rows ``start`` to ``stop``, as views of the same parts."""
        return self._of_rows(slice(start, stop))

    def take(self, rows: Tensor) -> QuantizedTensor:
        """Return the rows of these numbers, integer (n,), as copies of their parts: what is looked up in a table."""
        return self._of_rows(rows)

    def _of_rows(self, rows: slice | Tensor) -> QuantizedTensor:
        is_lut_shared = self.lut is not None and self.lut.shape[0] == 1

        def cut(part: Tensor | None) -> Tensor | None:
            return None if part is None else part[rows]

        return QuantizedTensor(
            self.codes[rows],
            self.in_features,
            self.bits,
            lut=self.lut if is_lut_shared else cut(self.lut),
            scale=cut(self.scale),
            bias=cut(self.bias),
            group_size=self.group_size,
        )

    @property
    def parts(self) -> dict[str, Tensor]:
        """The stored tensors by part name, in the order of the format."""
        parts = {"codes": self.codes, "lut": self.lut, "scale": self.scale, "bias": self.bias}
        return {name: tensor for name, tensor in parts.items() if tensor is not None}

    @property
    def size_bytes(self) -> int:
        """Bytes of all parts."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.parts.values())


def dequantize(tensor: QuantizedTensor, *, out: Tensor | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """Decode to (out_features, in_features). This is the reference that every faster backend must equal bit for bit.

    Args:
        tensor: The quantised weight.
        out: Buffer of that shape to write to; its dtype wins over ``dtype``.
        dtype: Dtype of a fresh result.
    """
    codes = unpack_codes(tensor.codes, tensor.bits, tensor.in_features)
    weight = codes.to(torch.float32) if tensor.lut is None else _look_up(tensor.lut, codes)
    if tensor.group_size is not None:
        if tensor.scale is not None:
            weight = weight * _per_column(tensor.scale, tensor.group_size, tensor.in_features)
        if tensor.bias is not None:
            weight = weight + _per_column(tensor.bias, tensor.group_size, tensor.in_features)
    return weight.to(dtype) if out is None else out.copy_(weight)


def _look_up(lut: Tensor, codes: Tensor) -> Tensor:
    table = lut.to(torch.float32)
    if table.shape[0] == 1:
        return table[0][codes.long()]
    return torch.gather(table, 1, codes.long())


def _per_column(grouped: Tensor, group_size: int, columns: int) -> Tensor:
    factors = grouped.to(torch.float32)
    if factors.shape[1] == 1:
        return factors
    return factors.repeat_interleave(group_size, dim=1)[:, :columns]


def _require(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if tensor.dtype != dtype or tuple(tensor.shape) != shape:
        raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}; needed {dtype} {shape}")
