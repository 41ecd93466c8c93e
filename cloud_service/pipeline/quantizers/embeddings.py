"""Quantises the token embedding and the output head: uniform codes, a scale and a bias per group of a row.

    8 bits    one group per row, which spans the row's range          decoded: code · scale + bias
    4 bits    groups of 32, the grid of the smallest squared error (``uniform``)

They have no Fisher diagonal and no mask: nothing in them is tuned, and every weight counts alike. Neither form has a
codebook: a row is decoded at every look-up, and a head is read as a whole for every token, so decoding must be cheap.
Costs the codes and one chunk of rows in float32 with the quantiser's scratch. Knows nothing about files.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from cloud_service.pipeline.quantizers.quantize import DensePart
from cloud_service.pipeline.quantizers.rtn import quantize_rtn
from cloud_service.pipeline.quantizers.uniform import quantize_uniform
from shared.quantization.codec import QuantizedTensor, dequantize

GROUP_SIZES: dict[int, int | None] = {8: None, 4: 32}
"""Bits → columns that share a scale and a bias; None is a whole row."""

_CHUNK_ELEMENTS = 1 << 19


def quantize_embedding(table: Tensor, bits: Literal[8, 4]) -> DensePart:
    """Return an embedding or a head in codes, and how far they are off.

    Args:
        table: float16 (vocabulary, width).
        bits: Bits per code.
    """
    rows_at_once = max(1, _CHUNK_ELEMENTS // table.shape[1])
    chunks, error, norm = [], 0.0, 0.0
    for rows in torch.split(table, rows_at_once):
        original = rows.to(torch.float32)
        chunk = _quantized(original, bits)
        chunks.append(chunk)
        error += float((original - dequantize(chunk)).square().sum(dtype=torch.float64))
        norm += float(original.square().sum(dtype=torch.float64))
    relative_error = error / norm if norm else 0.0
    return DensePart(_joined(chunks), relative_error, relative_error)


def _quantized(rows: Tensor, bits: Literal[8, 4]) -> QuantizedTensor:
    method = quantize_rtn if bits == 8 else quantize_uniform
    return method(rows, torch.ones_like(rows), bits, GROUP_SIZES[bits] or rows.shape[1])


def _joined(chunks: list[QuantizedTensor]) -> QuantizedTensor:
    parts = {name: torch.cat([chunk.parts[name] for chunk in chunks]) for name in chunks[0].parts}
    first = chunks[0]
    return QuantizedTensor(in_features=first.in_features, bits=first.bits, group_size=first.group_size, **parts)
