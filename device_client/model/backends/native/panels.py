"""Weights whose codes lie in panels, for the matrix unit of a CPU (``kernels/panels.h``), and their product."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from device_client.model.backends.native.library import KernelLibrary, Placement, described
from device_client.model.backends.packed_weight import PackedWeight
from device_client.model.backends.panel_layout import PANEL_COLUMNS, PANEL_ROWS, PASS_TOKENS
from device_client.model.backends.workspace import reusable_buffer
from shared.quantization.codec import QuantizedTensor

_PANEL_ROW_BYTES = PANEL_COLUMNS // 2


def with_panels(quantized: QuantizedTensor) -> QuantizedTensor:
    """Return the same weight with its codes in panels of 16 rows, block by block of 128 columns."""
    rows, row_bytes = quantized.codes.shape
    panels = quantized.codes.view(rows // PANEL_ROWS, PANEL_ROWS, row_bytes // _PANEL_ROW_BYTES, _PANEL_ROW_BYTES)
    codes = reusable_buffer(rows * row_bytes, torch.uint8, quantized.codes.device)
    codes.view(len(panels), -1, PANEL_ROWS, _PANEL_ROW_BYTES).copy_(panels.transpose(1, 2))
    return replace(quantized, codes=codes.view(rows, row_bytes))


def check_format(inputs: Tensor) -> None:
    """Refuse inputs that are not bfloat16.

    Raises:
        TypeError: They are not.
    """
    if inputs.dtype != torch.bfloat16:
        raise TypeError(f"inputs are {inputs.dtype}; a weight in panels is multiplied in bfloat16")


@dataclass(frozen=True, slots=True)
class PanelProduct:
    """x_p W(θ_p)ᵀ + b of every point, of one weight, made on the CPU's matrix unit.

    Attributes:
        library: The compiled kernels.
        placement: Of the weight's sensitive values.
        scratch: A buffer that is free while the product is made.
    """

    library: KernelLibrary
    placement: Placement
    scratch: Tensor

    def __call__(self, stacked: Tensor, weight: PackedWeight, values: Sequence[Tensor], bias: Tensor | None) -> Tensor:
        """Return the outputs, bfloat16 (points, tokens, out_features); see ``PointsProduct``."""
        check_format(stacked)
        points, tokens, columns = stacked.shape
        outputs = stacked.new_empty(points, tokens, weight.shape[0])
        needed = PASS_TOKENS * columns
        scratch = self.scratch if self.scratch.numel() >= needed else self.scratch.new_empty(needed)
        self.library.linear_at_points(
            stacked.contiguous(), described(weight), self.placement, values, bias, outputs, scratch
        )
        return outputs
