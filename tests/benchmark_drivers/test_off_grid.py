"""Noise that takes weights off a 4-bit grid: its size, its seed, and what it leaves alone."""

from __future__ import annotations

import torch
from off_grid import off_grid
from torch import Tensor


def on_a_grid() -> Tensor:
    """Eight rows of two groups: 16 levels, 0.01 apart in the first group of a row and 0.03 in the second."""
    codes = torch.randint(0, 16, (8, 2, 32), generator=torch.Generator().manual_seed(0)).float()
    codes[:, :, 0], codes[:, :, 1] = 0, 15
    return (codes * torch.tensor([0.01, 0.03])[:, None] - 0.2).view(8, 64)


def test_the_noise_fills_half_a_step_to_each_side_and_no_more() -> None:
    weight = on_a_grid()
    noise = (off_grid(weight, torch.Generator().manual_seed(0)) - weight).view(8, 2, 32)
    for group, step in enumerate((0.01, 0.03)):
        assert noise[:, group].abs().max() <= step / 2 + 1e-6
        # of 256 uniform values: mean 0 and standard deviation step / √12, both within four standard errors
        assert abs(float(noise[:, group].mean())) < 4 * step / 12**0.5 / 16
        assert abs(float(noise[:, group].std()) / (step / 12**0.5) - 1) < 0.15


def test_the_same_seed_gives_the_same_weights() -> None:
    first, again, other = (off_grid(on_a_grid(), torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
