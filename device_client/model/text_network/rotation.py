"""Rotary position embeddings: frequencies of the kinds that do not depend on the length of the text.

    ω_j   = base^(−2j / width)                      for j = 0 … width/2 − 1                                 default
    ω_j   = base^(−2j / width) / factor                                                                     linear
    llama3: wavelengths λ = 2π/ω beyond original/low are divided by the factor, those below original/high are not, and
            in between ω is mixed: (1 − s) ω / factor + s ω,  s = (original/λ − low) / (high − low)
    angle = position · ω_j, for both halves of a head

References: Su et al. 2021 (RoFormer); Llama 3.1's scaling as transformers computes it. Costs nothing that matters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def rotary_frequencies(parameters: Mapping[str, Any], width: int) -> Tensor:
    """Return ω, float32 (width / 2,), of a served kind.

    Args:
        parameters: ``rope_type`` and its numbers.
        width: Of a head.
    """
    exponents = torch.arange(0, width, 2, dtype=torch.float32, device="cpu") / width
    frequencies: Tensor = 1.0 / parameters["rope_theta"] ** exponents
    if parameters["rope_type"] == "linear":
        return frequencies.div(parameters["factor"])
    if parameters["rope_type"] == "llama3":
        return _scaled_like_llama3(frequencies, parameters)
    return frequencies


def _scaled_like_llama3(frequencies: Tensor, parameters: Mapping[str, Any]) -> Tensor:
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    original, factor = parameters["original_max_position_embeddings"], parameters["factor"]
    wavelengths = 2 * math.pi / frequencies
    slowed = torch.where(wavelengths > original / low, frequencies / factor, frequencies)
    share = (original / wavelengths - low) / (high - low)
    mixed = (1 - share) * slowed / factor + share * slowed
    is_between = (wavelengths >= original / high) & (wavelengths <= original / low)
    return torch.where(is_between, mixed, slowed)


class Rotation(nn.Module):
    """Cosines and sines of positions.

    Args:
        frequencies: ω, float32 (width / 2,).
    """

    def __init__(self, frequencies: Tensor) -> None:
        super().__init__()
        self.frequencies = nn.Buffer(frequencies, persistent=False)

    def forward(self, like: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and sines (…, width), in the dtype of ``like``, of positions (…)."""
        angles = positions[..., None].float() * self.frequencies
        both_halves = torch.cat([angles, angles], dim=-1)
        return both_halves.cos().to(like.dtype), both_halves.sin().to(like.dtype)


def rotate(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Return queries or keys (…, tokens, width), turned by their positions' angles (tokens, width)."""
    first, second = heads.chunk(2, dim=-1)
    return heads * cosines + torch.cat([-second, first], dim=-1) * sines
