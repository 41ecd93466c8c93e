"""What the codes of a weight stand for, as something that can be fitted: linear in its values once codes are chosen.

    decoded = P(codes) · values            per row

    CodebookGrid   one value per code                     values = codebook               (rows, 2^bits)
    GroupGrid      scale · (code − middle) + centre       values = scales, then centres   (rows, 2 · groups)
    SharedGrid     scale · table[code]                    values = scales, or the table   (rows, groups), (1, 2^bits)

``expand`` is P, ``collect`` its transpose, ``curvature`` the diagonal of Pᵀ diag(h) P. A group's centre stands for its
bias because scale and centre hardly depend on each other, as scale and bias do. A shared grid is linear in its scales
and in its table, but not in both at once, so it offers them in turns. Costs one pass over the weight each.
Knows nothing about how codes or values are chosen.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cloud_service.pipeline.quantizers.rtn import group_codes, split_into_groups, to_float16_grid
from shared.quantization.codec import QuantizedTensor
from shared.quantization.packing import pack_codes


class Grid(Protocol):
    """Values that codes choose from; codes are int64 (rows, columns)."""

    @property
    def turns(self) -> int:
        """How many times to fit until all there is was fitted once."""

    @property
    def values(self) -> Tensor:
        """What is to be fitted next, float32 (rows or 1, any number)."""

    def expand(self, values: Tensor, codes: Tensor) -> Tensor:
        """Return what the codes stand for under other values, (rows, columns)."""

    def collect(self, amounts: Tensor, codes: Tensor) -> Tensor:
        """Return, shaped like the values, the sum of each value's share in the amounts (rows, columns)."""

    def curvature(self, diagonal: Tensor, codes: Tensor) -> Tensor:
        """Return, shaped like the values, Σ diagonal · share²; the diagonal is per weight, (rows, columns)."""

    def fitted(self, values: Tensor, codes: Tensor) -> tuple[Grid, Tensor]:
        """Return the grid of these values as float16 holds them, and the codes that mean in it what they meant."""

    def encode(self, column: int, targets: Tensor, /) -> tuple[Tensor, Tensor]:
        """Return the nearest codes of one column's targets and what they decode to, both (rows)."""

    def assemble(self, codes: Tensor) -> QuantizedTensor:
        """Return the quantised weight that has these codes."""


@dataclass(frozen=True, slots=True)
class CodebookGrid:
    """A codebook per row.

    Attributes:
        values: float32 (rows, 2^bits), increasing, representable in float16.
        bits: Bits per code.
        by_code: The same, transposed.
        middles: Middles between neighbouring values, transposed.
    """

    values: Tensor
    bits: int
    by_code: Tensor
    middles: Tensor
    turns: int = 1

    @classmethod
    def of(cls, values: Tensor, bits: int) -> CodebookGrid:
        """Return the grid of an increasing codebook per row, float16 or float32."""
        values = values.to(torch.float32)
        by_code = values.T.contiguous()
        return cls(values, bits, by_code, (by_code[1:] + by_code[:-1]) / 2)

    def expand(self, values: Tensor, codes: Tensor) -> Tensor:
        """Return what the codes stand for under other values, (rows, columns)."""
        return values.gather(1, codes)

    def collect(self, amounts: Tensor, codes: Tensor) -> Tensor:
        """Return the sum of the amounts of each code, shaped like the values."""
        return torch.zeros_like(self.values).scatter_add_(1, codes, amounts)

    def curvature(self, diagonal: Tensor, codes: Tensor) -> Tensor:
        """Return the sum of the diagonal of each code, shaped like the values."""
        return self.collect(diagonal, codes)

    def fitted(self, values: Tensor, codes: Tensor) -> tuple[CodebookGrid, Tensor]:
        """Return the grid of these values in increasing order, as float16 holds them, and the codes in that order."""
        ordered, order = values.to(torch.float16).to(torch.float32).sort(dim=1, stable=True)
        return CodebookGrid.of(ordered, self.bits), order.argsort(dim=1).gather(1, codes)

    def encode(self, _: int, targets: Tensor, /) -> tuple[Tensor, Tensor]:
        """Return the nearest codes of a column's targets and what they decode to, both (rows)."""
        codes = (targets > self.middles).sum(dim=0)
        return codes, self.by_code.gather(0, codes[None])[0]

    def assemble(self, codes: Tensor) -> QuantizedTensor:
        """Return the quantised weight that has these codes."""
        packed = pack_codes(codes.to(torch.uint8), self.bits)
        return QuantizedTensor(packed, codes.shape[1], self.bits, lut=self.values.to(torch.float16))


@dataclass(frozen=True, slots=True)
class GroupGrid:
    """A scale and a bias per group of columns.

    Attributes:
        scale: float32 (rows, groups), representable in float16.
        bias: float32 (rows, groups), representable in float16.
        bits: Bits per code.
        group_size: Columns per group; the last group of a row may be shorter.
    """

    scale: Tensor
    bias: Tensor
    bits: int
    group_size: int
    turns: int = 1

    @property
    def values(self) -> Tensor:
        """Scales, then centres, float32 (rows, 2 · groups)."""
        return torch.cat([self.scale, self.bias + self._middle * self.scale], dim=1)

    def expand(self, values: Tensor, codes: Tensor) -> Tensor:
        """Return what the codes stand for under other values, (rows, columns)."""
        scale, centre = (self._per_column(part, codes.shape[1]) for part in values.chunk(2, dim=1))
        return scale * (codes - self._middle) + centre

    def collect(self, amounts: Tensor, codes: Tensor) -> Tensor:
        """Return each scale's and each centre's share in the amounts, shaped like the values."""
        return torch.cat([self._per_group(amounts * (codes - self._middle)), self._per_group(amounts)], dim=1)

    def curvature(self, diagonal: Tensor, codes: Tensor) -> Tensor:
        """Return Σ diagonal · share² of each scale and each centre, shaped like the values."""
        return torch.cat([self._per_group(diagonal * (codes - self._middle) ** 2), self._per_group(diagonal)], dim=1)

    def fitted(self, values: Tensor, codes: Tensor) -> tuple[GroupGrid, Tensor]:
        """Return the grid of these values as float16 holds them, and the same codes."""
        scale, centre = values.chunk(2, dim=1)
        scale, bias = to_float16_grid(scale, centre - self._middle * scale)
        return GroupGrid(scale, bias, self.bits, self.group_size), codes

    def encode(self, column: int, targets: Tensor, /) -> tuple[Tensor, Tensor]:
        """Return the nearest codes of one column's targets and what they decode to, both (rows)."""
        group = column // self.group_size
        scale, bias = self.scale[:, group, None], self.bias[:, group, None]
        codes = group_codes(targets[:, None, None], scale, bias, self.bits)[:, :, 0]
        return codes[:, 0].to(torch.int64), (codes * scale + bias)[:, 0]

    def assemble(self, codes: Tensor) -> QuantizedTensor:
        """Return the quantised weight that has these codes."""
        scale, bias = self.scale.to(torch.float16), self.bias.to(torch.float16)
        packed = pack_codes(codes.to(torch.uint8), self.bits)
        return QuantizedTensor(packed, codes.shape[1], self.bits, scale=scale, bias=bias, group_size=self.group_size)

    @property
    def _middle(self) -> float:
        return ((1 << self.bits) - 1) / 2

    def _per_column(self, groups: Tensor, columns: int) -> Tensor:
        return groups.repeat_interleave(self.group_size, dim=1)[:, :columns]

    def _per_group(self, amounts: Tensor) -> Tensor:
        return split_into_groups(amounts, self.group_size).sum(dim=2)


@dataclass(frozen=True, slots=True)
class SharedGrid:
    """One table for the whole weight, and a scale per group of columns.

    Attributes:
        table: float32 (2^bits), increasing, representable in float16.
        scale: float32 (rows, groups), positive, representable in float16.
        bits: Bits per code.
        group_size: Columns per group; the last group of a row may be shorter.
        fits_table: Whether the table is what is to be fitted next; the scales otherwise.
    """

    table: Tensor
    scale: Tensor
    bits: int
    group_size: int
    fits_table: bool = False
    turns: int = 2

    @property
    def values(self) -> Tensor:
        """The table, float32 (1, 2^bits), or the scales, (rows, groups)."""
        return self.table[None] if self.fits_table else self.scale

    def expand(self, values: Tensor, codes: Tensor) -> Tensor:
        """Return what the codes stand for under other values, (rows, columns)."""
        table, scale = (values[0], self.scale) if self.fits_table else (self.table, values)
        return table[codes] * self._per_column(scale, codes.shape[1])

    def collect(self, amounts: Tensor, codes: Tensor) -> Tensor:
        """Return each value's share in the amounts, shaped like the values."""
        if not self.fits_table:
            return split_into_groups(amounts * self.table[codes], self.group_size).sum(dim=2)
        return self._sum_by_code(amounts * self._per_column(self.scale, codes.shape[1]), codes)

    def curvature(self, diagonal: Tensor, codes: Tensor) -> Tensor:
        """Return Σ diagonal · share² of each value, shaped like the values."""
        if not self.fits_table:
            return split_into_groups(diagonal * self.table[codes] ** 2, self.group_size).sum(dim=2)
        return self._sum_by_code(diagonal * self._per_column(self.scale, codes.shape[1]) ** 2, codes)

    def fitted(self, values: Tensor, codes: Tensor) -> tuple[SharedGrid, Tensor]:
        """Return the grid of these values as float16 holds them, whose other half is next, and the codes in it."""
        if not self.fits_table:
            scale, _ = to_float16_grid(values, torch.zeros_like(values))
            return dataclasses.replace(self, scale=scale, fits_table=True), codes
        table, order = values[0].to(torch.float16).to(torch.float32).sort(stable=True)
        return dataclasses.replace(self, table=table, fits_table=False), order.argsort()[codes]

    def encode(self, column: int, targets: Tensor, /) -> tuple[Tensor, Tensor]:
        """Return the nearest codes of one column's targets and what they decode to, both (rows)."""
        scale = self.scale[:, column // self.group_size]
        codes = torch.bucketize(targets / scale, (self.table[1:] + self.table[:-1]) / 2)
        return codes, self.table[codes] * scale

    def assemble(self, codes: Tensor) -> QuantizedTensor:
        """Return the quantised weight that has these codes."""
        table, scale = self.table[None].to(torch.float16), self.scale.to(torch.float16)
        packed = pack_codes(codes.to(torch.uint8), self.bits)
        return QuantizedTensor(packed, codes.shape[1], self.bits, table, scale, None, self.group_size)

    def _per_column(self, groups: Tensor, columns: int) -> Tensor:
        return groups.repeat_interleave(self.group_size, dim=1)[:, :columns]

    def _sum_by_code(self, amounts: Tensor, codes: Tensor) -> Tensor:
        sums = torch.zeros_like(self.table)
        return sums.index_add_(0, codes.flatten(), amounts.flatten())[None]
