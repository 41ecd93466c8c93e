"""Zeroth-order gradient estimation on the sensitive values only (SPSA).

    two-sided   g   = (L(θ + ε·z) − L(θ − ε·z)) / (2·ε)              Definition 1, a scalar; two passes per direction
    one-sided   g_i = (L(θ + ε·z_i) − mean_{j≠i} L(θ + ε·z_j)) / ε   one pass per direction, two directions or more
    step        θ  ← θ − (η/q) Σ g·z                                 Definition 4

Symbols: θ ``theta`` float32 (k,) · z ``z`` float32 (k,) · ε ``epsilon`` · η ``lr`` · q directions · L mean loss, nats
per answer. No backward pass. g and η are rounded to float32 before they are used, because the journal keeps them so:
what is replayed equals what was done. With one-sided directions the others' mean takes the place of L(θ), whose
independence of z_i leaves g_i·z_i unbiased; the pass for L(θ) itself is saved.
Knows nothing about models or tasks.
References: arXiv 2406.02913 Definitions 1 and 4; Malladi et al. 2023 (MeZO), Algorithm 1; for one-sided directions
Dang et al. 2025 (FZOO).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from device_client.model.points import PerturbedPoint, Point
from device_client.tuning.measurements import pair_signal
from device_client.tuning.settings import Directions

BatchT = TypeVar("BatchT")
ContravariantBatch = TypeVar("ContravariantBatch", contravariant=True)
Perturbations = Callable[[int, int], Tensor]
"""(step, query) → z, float32 (k,)."""


class Losses(Protocol[ContravariantBatch]):
    """The losses of a batch at several θ; the same θ and batch give the same bits, whatever the others are."""

    def __call__(self, thetas: Sequence[Point], batch: ContravariantBatch) -> Tensor:
        """Return each row's loss at each θ, float64 (points, rows), nats per answer; may be infinite or NaN."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What the passes of one direction say.

    Attributes:
        loss_plus: L(θ + ε·z), nats per answer.
        loss_minus: What it is compared with: L(θ − ε·z), or the mean of the other directions.
        distance: How far along z the two lie apart: 2·ε, or ε.
        signal: Estimate of ‖ḡ‖²; NaN for a single row.
    """

    loss_plus: float
    loss_minus: float
    distance: float
    signal: float = math.nan

    @property
    def loss_difference(self) -> float:
        """ΔL = L₊ − L₋, nats; NaN where a loss is not finite."""
        if not (math.isfinite(self.loss_plus) and math.isfinite(self.loss_minus)):
            return math.nan
        return self.loss_plus - self.loss_minus

    @property
    def projected_gradient(self) -> float:
        """g, rounded to float32; NaN where a loss is not finite."""
        return float(np.float32(self.loss_difference / self.distance))

    @property
    def clean_loss(self) -> float:
        """(L₊ + L₋) / 2: equals L(θ) up to ε²·zᵀHz / 2, and is what a moving average may be taken of."""
        return (self.loss_plus + self.loss_minus) / 2


def estimate(
    losses: Losses[BatchT],
    theta: Tensor,
    directions: Sequence[Tensor],
    epsilon: float,
    batch: BatchT,
    kind: Directions = "two-sided",
) -> list[Estimate]:
    """Return what each direction says; θ is left as it is, and each point is computed from it anew."""
    if kind == "two-sided":
        found = losses(perturbed(theta, directions, epsilon), batch)
        return _compare(found[::2], found[1::2], 2 * epsilon)
    found = losses([PerturbedPoint(theta, z, epsilon) for z in directions], batch)
    others = (found.sum(dim=0) - found) / (len(found) - 1)
    return _compare(found, others, epsilon)


def _compare(plus: Tensor, minus: Tensor, distance: float) -> list[Estimate]:
    signals = [pair_signal(row) for row in ((plus - minus) / distance).tolist()]
    means = zip(plus.mean(dim=1).tolist(), minus.mean(dim=1).tolist(), signals, strict=True)
    return [Estimate(up, down, distance, signal) for up, down, signal in means]


def perturbed(theta: Tensor, directions: Sequence[Tensor], epsilon: float) -> list[PerturbedPoint]:
    """Return θ + ε·z and θ − ε·z of each direction in turn."""
    return [PerturbedPoint(theta, z, signed) for z in directions for signed in (epsilon, -epsilon)]


def descend(theta: Tensor, directions: Sequence[Tensor], gradients: Sequence[float], lr: float) -> Tensor:
    """Return θ − (η/q) Σ g·z.

    Every product and difference is one float32 operation in a fixed order, so any machine gets the same bits.

    Args:
        theta: float32 (k,).
        directions: z of each query, float32 (k,).
        gradients: g of each query, each exact in float32.
        lr: η, exact in float32; 0 returns θ unchanged.
    """
    if lr == 0:
        return theta
    for z, gradient in zip(directions, gradients, strict=True):
        factor = np.float32(lr) * np.float32(gradient) / np.float32(len(gradients))
        step = z * float(factor)
        theta = torch.sub(theta, step, out=step)  # Definition 4
    return theta
