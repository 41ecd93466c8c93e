"""Codes of 2, 3, 4 or 8 bits as bytes.

Each row is one little-endian bit string: code j of a row occupies bits [j·bits, (j+1)·bits), the lowest bit first;
the last byte is filled up with zeros. At 4 bits this means: the low nibble is the even column. Worked example, 3 bits:

    codes 1 2 3   →   001 010 011 read from the low end   →   bits …0 11010001   →   bytes 0xD1 0x00

Rows are padded separately, so any block of rows can be cut out without shifting bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

BIT_WIDTHS = (2, 3, 4, 8)


def packed_row_bytes(columns: int, bits: int) -> int:
    """Return the bytes that one row of ``columns`` codes occupies."""
    return -(-columns * bits // 8)


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Pack codes, integer (rows, columns) with values in [0, 2^bits), to uint8 (rows, ceil(columns·bits/8)).

    Raises:
        ValueError: ``bits`` is not 2, 3, 4 or 8, or a code does not fit.
    """
    _check_bits(bits)
    if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= 1 << bits):
        raise ValueError(
            f"codes lie in [{int(codes.min())}, {int(codes.max())}]; {bits} bits hold [0, {(1 << bits) - 1}]"
        )
    codes = codes.to(torch.uint8)
    if bits == 8:
        return codes.clone()
    if bits == 3:
        return _pack_bit_string(codes, bits)
    per_byte = 8 // bits
    padded = torch.nn.functional.pad(codes, (0, -codes.shape[1] % per_byte))
    packed = padded[:, ::per_byte].clone()
    for position in range(1, per_byte):
        packed |= padded[:, position::per_byte] << (position * bits)
    return packed


def unpack_codes(packed: Tensor, bits: int, columns: int) -> Tensor:
    """Unpack uint8 (rows, ceil(columns·bits/8)) to uint8 codes (rows, columns).

    Raises:
        ValueError: ``bits`` is not 2, 3, 4 or 8, or the rows have another length.
    """
    _check_bits(bits)
    if packed.shape[1] != packed_row_bytes(columns, bits):
        raise ValueError(f"rows of {packed.shape[1]} bytes cannot hold {columns} codes of {bits} bits")
    if bits == 8:
        return packed.clone()
    if bits == 3:
        return _unpack_bit_string(packed, bits, columns)
    mask = (1 << bits) - 1
    shifts = range(0, 8, bits)
    return torch.stack([(packed >> shift) & mask for shift in shifts], dim=2).flatten(1)[:, :columns].contiguous()


def _check_bits(bits: int) -> None:
    if bits not in BIT_WIDTHS:
        raise ValueError(f"bits is {bits}; it must be one of {BIT_WIDTHS}")


def _pack_bit_string(codes: Tensor, bits: int) -> Tensor:
    rows, columns = codes.shape
    planes = torch.stack([(codes >> bit) & 1 for bit in range(bits)], dim=2).reshape(rows, columns * bits)
    planes = torch.nn.functional.pad(planes, (0, -planes.shape[1] % 8)).reshape(rows, -1, 8)
    weights = torch.tensor([1 << bit for bit in range(8)], dtype=torch.uint8, device=codes.device)
    return (planes * weights).sum(dim=2, dtype=torch.uint8)


def _unpack_bit_string(packed: Tensor, bits: int, columns: int) -> Tensor:
    rows = packed.shape[0]
    planes = torch.stack([(packed >> bit) & 1 for bit in range(8)], dim=2).reshape(rows, -1)[:, : columns * bits]
    weights = torch.tensor([1 << bit for bit in range(bits)], dtype=torch.uint8, device=packed.device)
    return (planes.reshape(rows, columns, bits) * weights).sum(dim=2, dtype=torch.uint8)
