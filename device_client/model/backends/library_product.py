"""Products at several points by torch's library, over one decoding of a weight.

    y_p = x_p W(θ_p)ᵀ + b          for p = 1 … points, over one decode(codes)

The weight is decoded once, and the values of one point are written over those of the point before. Each point's product
is a library call of its own, of the same shape as if the point ran alone: the same bits.

On a CPU, where tokens are few, the weight goes in tiles of rows that stay in the cache: written to memory and read back
it would cost more than the decoding. For the fewest, tiles are the left operand, which a library takes as it lies,
where a right one is packed first:  yᵀ[rows] = W[rows] xᵀ.  Which way is taken depends on shapes and device alone, so
that bits do not depend on anything else.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from device_client.model.backends.weight import EVERY_ROW, Weight

TILED_UP_TO_TOKENS = 256
"""Per point, on a CPU. Above, packing each tile's inputs again costs more than memory does."""

TRANSPOSED_UP_TO_TOKENS = 64
"""Above, packing the weight is repaid. Both measured on 4096 × 4096, 11008 × 4096 and 4096 × 11008."""

TILE_ROWS = 2048
_ALIGNMENT_BYTES = 64


def multiply_decoded(weight: Weight, stacked: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    """Return x_p W(θ_p)ᵀ + b of every point, compute dtype (points, tokens, out_features).

    Args:
        weight: Is decoded and overwritten.
        stacked: Compute dtype (points, tokens, in_features).
        values: Compute dtype (points, k).
        bias: Compute dtype (out_features,), or None.
    """
    tokens = stacked.shape[1]
    if stacked.device.type != "cpu" or tokens > TILED_UP_TO_TOKENS:
        return _by_whole_weight(weight, stacked, values, bias)
    by_tiles = _by_tiles if tokens > TRANSPOSED_UP_TO_TOKENS else _by_tiles_transposed
    outputs = by_tiles(weight, stacked, values)
    return outputs if bias is None else outputs.add_(bias)


def _by_whole_weight(weight: Weight, stacked: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    outputs = stacked.new_empty(*stacked.shape[:2], weight.shape[0])
    for point, dense in _at_each_point(weight, values, EVERY_ROW):
        _multiply(stacked[point], dense, bias, outputs[point])
    return outputs


def _by_tiles(weight: Weight, stacked: Tensor, values: Tensor) -> Tensor:
    outputs = stacked.new_empty(*stacked.shape[:2], weight.shape[0])
    inputs = [aligned(of_point) for of_point in stacked]
    for rows in _tiles(weight):
        for point, dense in _at_each_point(weight, values, rows):
            outputs[point, :, rows] = torch.mm(inputs[point], dense.T)
    return outputs


def _by_tiles_transposed(weight: Weight, stacked: Tensor, values: Tensor) -> Tensor:
    points, tokens, _ = stacked.shape
    transposed = stacked.new_empty(points, weight.shape[0], tokens)
    inputs = [aligned(of_point).T for of_point in stacked]
    for rows in _tiles(weight):
        for point, dense in _at_each_point(weight, values, rows):
            _multiply_into(dense, inputs[point], transposed[point, rows])
    return transposed.transpose(1, 2).contiguous()


def _tiles(weight: Weight) -> Iterator[slice]:
    count = weight.shape[0]
    if count <= TILE_ROWS:
        yield EVERY_ROW
        return
    for start in range(0, count, TILE_ROWS):
        yield slice(start, min(start + TILE_ROWS, count))


def _at_each_point(weight: Weight, values: Tensor, rows: slice) -> Iterator[tuple[int, Tensor]]:
    """Yield each point with some rows of W at that point: decoded once, then overwritten (Equation 26)."""
    dense = weight.decode(values[0], rows)
    yield 0, dense
    for point in range(1, len(values)):
        weight.overwrite(dense, values[point], rows)
        yield point, dense


def _multiply(inputs: Tensor, dense: Tensor, bias: Tensor | None, outputs: Tensor) -> None:
    """Write x Wᵀ + b to ``outputs`` (tokens, out_features)."""
    if bias is None:
        _multiply_into(aligned(inputs), dense.T, outputs)
    elif _is_aligned(outputs):
        torch.addmm(bias, aligned(inputs), dense.T, out=outputs)
    else:
        outputs.copy_(torch.addmm(bias, aligned(inputs), dense.T))


def _multiply_into(left: Tensor, right: Tensor, outputs: Tensor) -> None:
    """Write a product to ``outputs``, with the same bits wherever in memory they lie."""
    if _is_aligned(outputs):
        torch.mm(left, right, out=outputs)
    else:
        outputs.copy_(torch.mm(left, right))


def aligned(tensor: Tensor) -> Tensor:
    """Return the tensor, or a copy that begins as a fresh one does."""
    return tensor if _is_aligned(tensor) else tensor.clone()


def _is_aligned(tensor: Tensor) -> bool:
    """Return whether a tensor begins as a fresh one does: a library's last bits may depend on it."""
    return tensor.data_ptr() % _ALIGNMENT_BYTES == 0
