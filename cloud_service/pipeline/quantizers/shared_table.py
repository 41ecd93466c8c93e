"""One table of values for a whole weight matrix, stretched by a float16 scale per group of columns.

    min over table, scale, codes   Σ p (w − scale · table[code])²

Found by turns from the groups' root mean squares: each weight takes the nearest code, each scale and then the table the
least-squares fit to the codes. The table begins as the best codebook of up to a million of the scaled weights, so that
it has the form of their distribution, which groups share, and the scales have what they differ in. It takes
16 / group_size bits per weight, where a codebook per row of n columns takes 16 · 2^bits / n: at 4 bits and groups of
128 it is the smaller one below 2,048 columns.
Symbols: p ``importance``, 0 at masked weights. Costs about twenty passes over the weight.
Knows nothing about masks or activations.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cloud_service.pipeline.quantizers.grids import SharedGrid
from cloud_service.pipeline.quantizers.lut import row_codebooks
from cloud_service.pipeline.quantizers.rtn import split_into_groups, to_float16_grid
from shared.quantization.codec import QuantizedTensor

_SAMPLE = 1 << 20
_TURNS = 2


def quantize_shared(weight: Tensor, importance: Tensor, bits: int, group_size: int) -> QuantizedTensor:
    """Return the weight with one table and a float16 scale per group of ``group_size`` columns.

    Args:
        weight: float32 (out_features, in_features).
        importance: float32, the same shape, not negative; 0 leaves a weight out.
        bits: 2, 3, 4 or 8.
        group_size: Columns per group; the last group of a row may be shorter.
    """
    grid = shared_grid(weight, importance, bits, group_size)
    return grid.assemble(_nearest_codes(weight, grid))


def shared_grid(weight: Tensor, importance: Tensor, bits: int, group_size: int) -> SharedGrid:
    """Return the table and the scales; the arguments are those of ``quantize_shared``."""
    kept = split_into_groups(weight * importance.sign(), group_size)
    counted = split_into_groups(importance.sign(), group_size).sum(dim=2).clamp_min(1)
    scale, _ = to_float16_grid((kept.square().sum(dim=2) / counted).sqrt(), torch.zeros_like(counted))
    grid = SharedGrid(_first_table(weight, importance, scale, bits, group_size), scale, bits, group_size)
    for _ in range(_TURNS):
        codes = _nearest_codes(weight, grid)
        for _ in range(grid.turns):
            share = grid.curvature(importance, codes)
            fitted = grid.collect(importance * weight, codes) / torch.where(share > 0, share, 1)
            grid, codes = grid.fitted(torch.where((share > 0) & _is_usable(grid, fitted), fitted, grid.values), codes)
    return grid


def _is_usable(grid: SharedGrid, values: Tensor) -> Tensor:
    return torch.ones_like(values, dtype=torch.bool) if grid.fits_table else values > 0


def _first_table(weight: Tensor, importance: Tensor, scale: Tensor, bits: int, group_size: int) -> Tensor:
    """Return the best codebook of a sample of the scaled weights, float32 (2^bits)."""
    every = -(-weight.numel() // _SAMPLE)
    per_column = scale.repeat_interleave(group_size, dim=1)[:, : weight.shape[1]]
    scaled, cost = (weight / per_column).flatten()[::every], (importance * per_column**2).flatten()[::every]
    return row_codebooks(scaled[None].contiguous(), cost[None].contiguous(), 1 << bits)[0].to(torch.float32)


def _nearest_codes(weight: Tensor, grid: SharedGrid) -> Tensor:
    per_column = grid.scale.repeat_interleave(grid.group_size, dim=1)[:, : weight.shape[1]]
    return torch.bucketize(weight / per_column, (grid.table[1:] + grid.table[:-1]) / 2)
