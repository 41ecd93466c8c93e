"""Zeroth-order gradient estimation on the sensitive values only (SPSA).

    g   = (L(θ + ε·z) − L(θ − ε·z)) / (2·ε)        Definition 1, a scalar
    θ  ← θ − η·g·z                                 Definition 4

Symbols: θ ``theta`` float32 (k,) · z ``z`` float32 (k,) · ε ``epsilon`` · η ``lr`` · L mean loss, nats per answer.
Costs two forward passes, no backward pass. With q queries per step g·z is averaged over q directions. g and η are
rounded to float32 before they are used, because the journal keeps them so: what is replayed equals what was done.
Knows nothing about models or tasks.
References: arXiv 2406.02913 Definitions 1 and 4; Malladi et al. 2023 (MeZO), Algorithm 1.
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

BatchT = TypeVar("BatchT")
ContravariantBatch = TypeVar("ContravariantBatch", contravariant=True)
Perturbations = Callable[[int, int], Tensor]
"""(step, query) → z, float32 (k,)."""


class Losses(Protocol[ContravariantBatch]):
    """The mean loss of a batch at several θ; the same θ and batch give the same bits, whatever the others are."""

    def __call__(self, thetas: Sequence[Point], batch: ContravariantBatch) -> list[float]:
        """Return L at each θ, nats per answer; may be infinite or NaN."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Both losses of one query.

    Attributes:
        loss_plus: L(θ + ε·z), nats per answer.
        loss_minus: L(θ − ε·z).
        epsilon: ε.
    """

    loss_plus: float
    loss_minus: float
    epsilon: float

    @property
    def loss_difference(self) -> float:
        """ΔL = L₊ − L₋, nats; NaN where a loss is not finite."""
        if not (math.isfinite(self.loss_plus) and math.isfinite(self.loss_minus)):
            return math.nan
        return self.loss_plus - self.loss_minus

    @property
    def projected_gradient(self) -> float:
        """g, rounded to float32; NaN where a loss is not finite."""
        return float(np.float32(self.loss_difference / (2 * self.epsilon)))

    @property
    def clean_loss(self) -> float:
        """(L₊ + L₋) / 2: equals L(θ) up to ε²·zᵀHz / 2, and is what a moving average may be taken of."""
        return (self.loss_plus + self.loss_minus) / 2


def estimate(
    losses: Losses[BatchT], theta: Tensor, directions: Sequence[Tensor], epsilon: float, batch: BatchT
) -> list[Estimate]:
    """Return both losses of each direction; θ is left as it is, and each sign is computed from it anew."""
    found = losses(perturbed(theta, directions, epsilon), batch)
    return [Estimate(plus, minus, epsilon) for plus, minus in zip(found[::2], found[1::2], strict=True)]


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
