"""Published ways to quantise a weight matrix, made here by their recipes: NF4, SqueezeLLM, AWQ.

    nf4          the 16 values of NF4 times the largest magnitude of 64 columns, in float16; or those magnitudes in
                 8 bits, 256 of them sharing a float32 scale, around their mean (QLoRA's double quantisation)
    squeezellm   per row the 2^bits values of weighted k-means, weighted by the Fisher diagonal alone
    awq          round to nearest in groups, after input channels were scaled by (root mean square of the input)^α;
                 α of 20 by the error of the layer's outputs

A recipe returns the decoded weight and what its parts take, in bits. SqueezeLLM's k-means is solved by this project's
dynamic programme, which ends 4 to 16 % lower in its objective than the scikit-learn that its authors ran. AWQ's channel
scales count nothing here, because they can go into the layer before; it clips nothing. Knows nothing about models.
References: arXiv 2305.14314 (QLoRA), arXiv 2306.07629 (SqueezeLLM), arXiv 2306.00978 (AWQ).
"""

from __future__ import annotations

import torch
from torch import Tensor

from cloud_service.pipeline.quantizers.lut import nearest_codes, quantize_lut
from cloud_service.pipeline.quantizers.rtn import quantize_rtn, split_into_groups
from shared.quantization.codec import dequantize

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""The values of the 4-bit normal float, as QLoRA publishes them (arXiv 2305.14314, Appendix E)."""

_NF4_GROUP, _NF4_SCALES_PER_BLOCK = 64, 256
_AWQ_STEPS = 20


def nf4(weight: Tensor, *, doubly: bool) -> tuple[Tensor, int]:
    """Return the weight in NF4, float32, its scales quantised too or in float16, and its size in bits."""
    groups = split_into_groups(weight, _NF4_GROUP)
    largest = groups.abs().amax(dim=2)
    scale, scale_bits = largest.to(torch.float16).to(torch.float32), 16 * largest.numel()
    if doubly:
        scale, scale_bits = _in_eight_bits(largest)
    relative = groups / torch.where(scale > 0, scale, 1)[..., None]
    table = torch.tensor(NF4)
    codes = nearest_codes(relative.flatten(1), table.expand(len(weight), -1))
    decoded = table[codes].view_as(groups) * scale[..., None]
    return decoded.flatten(1)[:, : weight.shape[1]], 4 * weight.numel() + scale_bits


def _in_eight_bits(scale: Tensor) -> tuple[Tensor, int]:
    """Return positive scales as QLoRA stores them, and the bits of that."""
    mean = scale.mean()
    blocks = split_into_groups((scale - mean).flatten()[None], _NF4_SCALES_PER_BLOCK)
    step = (blocks.abs().amax(dim=2, keepdim=True) / 127).clamp_min(1e-30)
    stored = ((blocks / step).round() * step).flatten()[: scale.numel()].view_as(scale) + mean
    return stored, 8 * scale.numel() + 32 * step.numel() + 32


def squeezellm(weight: Tensor, fisher: Tensor, is_masked: Tensor, bits: int) -> tuple[Tensor, int]:
    """Return the weight by a codebook per row, and its size in bits; masked weights count nothing in the k-means."""
    kept = (~is_masked).float()
    counted = fisher * kept
    without_gradient = counted.sum(dim=1, keepdim=True) == 0
    quantized = quantize_lut(weight, torch.where(without_gradient, kept, counted), bits)
    return dequantize(quantized), 8 * quantized.size_bytes


def awq(weight: Tensor, second_moment: Tensor, bits: int, group_size: int) -> tuple[Tensor, int]:
    """Return the weight rounded under the best of 20 channel scalings, and its size in bits."""
    everywhere = torch.ones_like(weight)
    magnitude = second_moment.diagonal().clamp_min(1e-12).sqrt()
    best, best_error, size = weight, torch.inf, 0
    for step in range(_AWQ_STEPS):
        scale = magnitude ** (step / _AWQ_STEPS)
        scale = scale / (scale.max() * scale.min()).sqrt()
        quantized = quantize_rtn(weight * scale, everywhere, bits, group_size)
        decoded = dequantize(quantized) / scale
        error = float((((weight - decoded) @ second_moment) * (weight - decoded)).sum())
        if error < best_error:
            best, best_error, size = decoded, error, 8 * quantized.size_bytes
    return best, size
