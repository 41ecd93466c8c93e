"""Quantises what is left of weights beside their sensitive parts.

    w_sparse = w[mask] in float16 (not made here)      w_dense = Q(w), where masked weights have no influence on Q

Importance is F + λ·mean(F) of the weight's row: the Fisher diagonal of a few hundred sequences is noisy and skewed, and
without the floor λ a weight whose gradients happened to vanish could be moved anywhere. λ was chosen by measured
perplexity (tests/benchmarks/perplexity.py). F is scaled to mean 1 per row first, so that nothing under- or overflows.
With ``compensation`` the codes are chosen column by column and later columns make up for earlier errors (Equation 13,
``quantizers/compensation``); codebooks, scales and biases are still found with the importance. The sensitive weights
stay what they are either way. Knows nothing about files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from cloud_service.pipeline.quantizers.compensation import (
    ColumnCoder,
    GridCoder,
    GroupCoder,
    quantize_compensated,
)
from cloud_service.pipeline.quantizers.grids import CodebookGrid
from cloud_service.pipeline.quantizers.lut import quantize_lut, row_codebooks
from cloud_service.pipeline.quantizers.rtn import quantize_rtn, range_grid
from cloud_service.pipeline.quantizers.shared_table import quantize_shared, shared_grid
from cloud_service.pipeline.quantizers.uniform import best_grid, quantize_uniform
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


@dataclass(frozen=True, slots=True)
class Original:
    """One weight before it is quantised.

    Attributes:
        weight: float32 (out_features, in_features), representable in float16.
        fisher: Fisher diagonal, float32, the same shape.
        mask: The weight's sensitivity mask.
    """

    weight: Tensor
    fisher: Tensor
    mask: SensitivityMask

    @property
    def masked(self) -> Tensor:
        """Flat indices of the sensitive weights, int64."""
        return flat_index(self.mask, self.weight.device)

    @property
    def is_masked(self) -> Tensor:
        """Where the weight is sensitive, bool, the same shape."""
        nowhere = torch.zeros(self.weight.numel(), dtype=torch.bool, device=self.weight.device)
        return nowhere.index_fill_(0, self.masked, True).view_as(self.weight)

    @property
    def masked_values(self) -> Tensor:
        """The sensitive weights, float16 on the CPU, in the order of the mask."""
        return self.weight.flatten()[self.masked].to("cpu", torch.float16)

    def beside(self, dense: QuantizedTensor) -> DensePart:
        """Return a quantised weight as this one's dense part."""
        difference = (self.weight - dequantize(dense)).masked_fill_(self.is_masked, 0).square_()
        kept = self.weight.masked_fill(self.is_masked, 0).square_()
        weighted_error = _share(self.fisher * difference, self.fisher * kept)
        return DensePart(dense, _share(difference, kept), weighted_error)


def quantize_unmasked(
    originals: Sequence[Original], spec: QuantizerSpec, second_moment: Tensor | None = None
) -> list[DensePart]:
    """Return the dense parts of weights that read the same inputs; each is what it would be alone.

    Rows do not influence each other, unless they share a table: the rows of all weights are quantised at once, with one
    factor of the second moment and one loop over its columns.

    Args:
        originals: The weights, with the same number of columns.
        spec: Method, bits, group size and compensation.
        second_moment: H = E[x xᵀ] of what enters them, float32 (in_features, in_features); needed for compensation.

    Raises:
        ValueError: ``spec`` asks for compensation and there is no second moment.
        UnsupportedModel: The second moment is not finite.
    """
    if spec.method == "shared" and len(originals) > 1:
        return [part for original in originals for part in quantize_unmasked([original], spec, second_moment)]
    weight = torch.cat([original.weight for original in originals])
    importance = torch.cat([importance_of(original.fisher, original.masked) for original in originals])
    if spec.compensation == "none":
        dense = quantize(weight, importance, spec)
    elif second_moment is None:
        raise ValueError("compensation needs the second moment of the layer's inputs")
    else:
        coder = column_coder(weight, importance, spec)
        is_masked = torch.cat([original.is_masked for original in originals])
        refits = spec.compensation == "refit"
        dense = quantize_compensated(weight, second_moment, is_masked, coder, refits=refits)
    ends = list(accumulate(len(original.weight) for original in originals))
    starts = [0, *ends[:-1]]
    return [o.beside(dense.rows(start, end)) for o, start, end in zip(originals, starts, ends, strict=True)]


def column_coder(weight: Tensor, importance: Tensor, spec: QuantizerSpec) -> ColumnCoder:
    """Return what quantises the weight's columns one by one by the method of ``spec``."""
    match spec.method:
        case "lut":
            return GridCoder(CodebookGrid.of(row_codebooks(weight, importance, 1 << spec.bits), spec.bits))
        case "shared":
            return GridCoder(shared_grid(weight, importance, spec.bits, spec.group_size))
        case "uniform" | "source":
            return GroupCoder(importance, spec.bits, spec.group_size, best_grid)
        case "rtn":
            return GroupCoder(importance, spec.bits, spec.group_size, range_grid)


def quantize(weight: Tensor, importance: Tensor, spec: QuantizerSpec) -> QuantizedTensor:
    """Return the weight quantised by the method of ``spec``, each weight by itself (no compensation)."""
    match spec.method:
        case "lut":
            return quantize_lut(weight, importance, spec.bits)
        case "shared":
            return quantize_shared(weight, importance, spec.bits, spec.group_size)
        case "uniform" | "source":  # what the source has no codes for
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
