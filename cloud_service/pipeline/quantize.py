"""Quantises what is left of one weight beside its sensitive part.

    w_sparse = w[mask] in float16 (not made here)      w_dense = Q(w), where masked weights have no influence on Q

Importance is F + λ·mean(F) of the weight's row: the Fisher diagonal of a few hundred sequences is noisy and skewed, and
without the floor λ a weight whose gradients happened to vanish could be moved anywhere. λ was chosen by measured
perplexity (tests/benchmarks/perplexity.py). F is scaled to mean 1 per row first, so that nothing under- or overflows.
Knows nothing about files.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cloud_service.pipeline.quantizers.lut import quantize_lut
from cloud_service.pipeline.quantizers.rtn import quantize_rtn
from cloud_service.pipeline.quantizers.uniform import quantize_uniform
from shared.api import QuantizerSpec
from shared.quantization.codec import QuantizedTensor, dequantize
from shared.sensitivity_mask import SensitivityMask

IMPORTANCE_FLOOR = 0.1
"""λ: how much of its row's mean every weight's importance is raised by."""


@dataclass(frozen=True, slots=True)
class DensePart:
    """The dense part of one weight, and how far it is off.

    Attributes:
        weight: The quantised weight; what its codes say at masked positions does not matter.
        relative_error: ‖W − Q‖² / ‖W‖² over the unmasked weights.
        weighted_relative_error: Σ F (W − Q)² / Σ F W² over the unmasked weights.
    """

    weight: QuantizedTensor
    relative_error: float
    weighted_relative_error: float


def quantize_unmasked(weight: Tensor, fisher: Tensor, mask: SensitivityMask, spec: QuantizerSpec) -> DensePart:
    """Return the dense part of a weight.

    Args:
        weight: float32 (out_features, in_features), representable in float16.
        fisher: Fisher diagonal, float32, the same shape.
        mask: The weight's sensitivity mask.
        spec: Method, bits and group size.
    """
    masked = flat_index(mask, weight.device)
    dense = quantize(weight, importance_of(fisher, masked), spec)
    kept = torch.ones(weight.numel(), device=weight.device).index_fill_(0, masked, 0).view_as(weight)
    difference = weight - dequantize(dense)
    return DensePart(
        dense,
        _share(kept * difference**2, kept * weight**2),
        _share(kept * fisher * difference**2, kept * fisher * weight**2),
    )


def quantize(weight: Tensor, importance: Tensor, spec: QuantizerSpec) -> QuantizedTensor:
    """Return the weight quantised by the method of ``spec``."""
    match spec.method:
        case "lut":
            return quantize_lut(weight, importance, spec.bits)
        case "uniform":
            return quantize_uniform(weight, importance, spec.bits, spec.group_size)
        case "rtn":
            return quantize_rtn(weight, importance, spec.bits, spec.group_size)


def importance_of(fisher: Tensor, masked: Tensor, floor: float = IMPORTANCE_FLOOR) -> Tensor:
    """Return what each weight's error costs: F scaled to mean 1 per row, plus λ; 0 at the flat positions ``masked``.

    Its mean over a row's unmasked weights is 1 + λ, or 1 in a row where F is 0 throughout.
    """
    kept = torch.ones(fisher.numel(), device=fisher.device).index_fill_(0, masked, 0).view_as(fisher)
    rows = kept * fisher.to(torch.float32)
    mean = rows.sum(dim=1, keepdim=True) / kept.sum(dim=1, keepdim=True).clamp_min(1)
    relative = torch.where(mean > 0, rows / torch.where(mean > 0, mean, 1), 1 - floor)
    return kept * (relative + floor)


def flat_index(mask: SensitivityMask, device: torch.device) -> Tensor:
    """Return the mask's flat indices as an int64 tensor."""
    return torch.from_numpy(mask.indices).to(device, torch.int64)


def _share(part: Tensor, whole: Tensor) -> float:
    total = float(whole.sum(dtype=torch.float64))
    return float(part.sum(dtype=torch.float64)) / total if total else 0.0
