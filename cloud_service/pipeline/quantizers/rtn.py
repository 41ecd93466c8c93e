"""Plain round to nearest in groups: the baseline that the other two quantisers are measured against.

    scale = (max − min) / (2^bits − 1)    bias = min    code = round((w − bias) / scale)

over the group's unmasked weights. Costs two passes over the weight. Knows nothing about gradients beyond 0 or not.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from shared.quantization.codec import QuantizedTensor
from shared.quantization.packing import pack_codes

_SMALLEST_SCALE = 2.0**-24
"""The smallest positive float16: a constant group keeps a usable scale."""


def quantize_rtn(weight: Tensor, importance: Tensor, bits: int, group_size: int) -> QuantizedTensor:
    """Return the weight with a float16 scale and bias per group of ``group_size`` columns.

    Args:
        weight: float32 (out_features, in_features).
        importance: float32, the same shape; 0 leaves a weight out of the group's range.
        bits: 2, 3, 4 or 8.
        group_size: Columns per group; the last group of a row may be shorter.
    """
    groups = split_into_groups(weight, group_size)
    scale, bias = range_grid(groups, split_into_groups(importance, group_size), bits)
    return assemble(groups, scale, bias, bits, weight.shape[1], group_size)


def split_into_groups(matrix: Tensor, group_size: int) -> Tensor:
    """Return (rows, groups, group_size), the last group filled up with zeros."""
    padded = functional.pad(matrix, (0, -matrix.shape[1] % group_size))
    return padded.reshape(len(matrix), -1, group_size)


def range_grid(groups: Tensor, importance: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return the scale and bias (rows, groups) that span each group's range, representable in float16."""
    low, high = group_range(groups, importance > 0)
    return to_float16_grid((high - low) / ((1 << bits) - 1), low)


def group_range(groups: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Return the smallest and largest counted weight of each group, (rows, groups); 0 where none is counted."""
    low = groups.masked_fill(~counted, torch.inf).amin(dim=2)
    high = groups.masked_fill(~counted, -torch.inf).amax(dim=2)
    is_empty = ~counted.any(dim=2)
    return low.masked_fill(is_empty, 0), high.masked_fill(is_empty, 0)


def to_float16_grid(scale: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return scale and bias as float16 would hold them, in float32; the scale is positive and both are finite."""
    largest = torch.finfo(torch.float16).max
    scale, bias = scale.clamp(_SMALLEST_SCALE, largest), bias.clamp(-largest, largest)
    return scale.to(torch.float16).to(torch.float32), bias.to(torch.float16).to(torch.float32)


def group_codes(groups: Tensor, scale: Tensor, bias: Tensor, bits: int) -> Tensor:
    """Return the nearest code of every weight, float32 (rows, groups, group_size)."""
    return ((groups - bias[..., None]) / scale[..., None]).round().clamp(0, (1 << bits) - 1)


def assemble(groups: Tensor, scale: Tensor, bias: Tensor, bits: int, columns: int, group_size: int) -> QuantizedTensor:
    """Return the quantised weight of given scales and biases."""
    codes = group_codes(groups, scale, bias, bits).flatten(1)[:, :columns]
    packed = pack_codes(codes.to(torch.uint8), bits)
    half_scale, half_bias = scale.to(torch.float16), bias.to(torch.float16)
    return QuantizedTensor(packed, columns, bits, scale=half_scale, bias=half_bias, group_size=group_size)
