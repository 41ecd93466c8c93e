"""Whether a perturbation survives rounding, and whether the difference of two losses does.

    z̃ = (cast(θ + ε·z) − cast(θ − ε·z)) / (2·ε)          loss of fidelity = ‖z̃ − z‖ / ‖z‖
    ΔL(ε) = L(θ + ε·z) − L(θ − ε·z)                       noise floor = rms over z of ΔL(ε/s) − ΔL(ε)/s,  s = 16

A 16-bit weight has a spacing; where ε is not well above it, the two signs are rounded to something else than ±ε·z and
g measures another direction than the one θ is moved along. In float32 nothing is lost. Costs two casts of k values.

To first order ΔL is proportional to ε, while what activations and sums lose to rounding is not: so what a much smaller
perturbation changes beyond its share is rounding. A |ΔL| near that floor says little about its own sign.
Costs four forward passes per direction. Knows nothing about models.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from device_client.devices import dtype_name
from device_client.tuning.settings import DEFAULTS
from device_client.tuning.spsa import Losses, estimate, perturbed
from shared.errors import InvalidRequest

BatchT = TypeVar("BatchT")

MAX_LOST_SHARE = 0.05
MAX_NOISE_SHARE = 0.7
"""Of the differences that it is part of: √½ is where noise and what the perturbation makes are equal."""

NOISE_SCALE = 16
"""s: small enough that ε/s still changes float16 weights of size 0.1 by about a unit of their last place."""


def lost_share(theta: Tensor, z: Tensor, epsilon: float, compute_dtype: torch.dtype) -> float:
    """Return ‖z̃ − z‖ / ‖z‖, 0 … : 0 is exact, 1 is a perturbation rounded away."""
    plus, minus = (point[:].to(compute_dtype).float() for point in perturbed(theta, [z], epsilon))
    realised = (plus.double() - minus.double()) / (2 * epsilon)
    return float((realised - z.double()).norm() / z.double().norm())


def check_fidelity(theta: Tensor, z: Tensor, epsilon: float, compute_dtype: torch.dtype) -> float:
    """Return the lost share.

    Raises:
        InvalidRequest: More than 5 % is lost; the message names the smallest doubling of ε that keeps it.
    """
    share = lost_share(theta, z, epsilon, compute_dtype)
    if share <= MAX_LOST_SHARE:
        return share
    enough = epsilon
    while lost_share(theta, z, enough, compute_dtype) > MAX_LOST_SHARE:
        enough *= 2
    raise InvalidRequest(
        f"rounding to {dtype_name(compute_dtype)} loses {share:.0%} of a perturbation of ε = {epsilon:g}",
        needed=f"at most {MAX_LOST_SHARE:.0%}",
        next_step=f"--epsilon {enough:g}",
        param="epsilon",
    )


@dataclass(frozen=True, slots=True)
class NoiseFloor:
    """How much of a ΔL is rounding.

    Attributes:
        noise: rms over the directions, nats; NaN where a loss is not finite.
        difference: rms of ΔL itself, nats; likewise.
    """

    noise: float
    difference: float

    def check(self, epsilon: float) -> None:
        """Refuse an ε whose differences do not survive.

        Raises:
            InvalidRequest: They are noise for the most part.
        """
        if self.noise >= MAX_NOISE_SHARE * self.difference:  # both are 0 where all of it is rounded away
            raise InvalidRequest(
                f"rounding changes the difference of two losses by {self.noise:.1g} nats, and with a perturbation of "
                f"ε = {epsilon:g} they differ by {self.difference:.1g}",
                needed=f"at most {MAX_NOISE_SHARE} of a difference by rounding",
                next_step=f"--epsilon {max(4 * epsilon, DEFAULTS.epsilon):g}, or leave --products out",
                param="epsilon",
            )


def noise_floor(
    losses: Losses[BatchT], theta: Tensor, directions: Sequence[Tensor], epsilon: float, batch: BatchT
) -> NoiseFloor:
    """Return how much of a ΔL of this batch is rounding.

    Args:
        losses: The losses of a batch.
        theta: float32 (k,).
        directions: z, float32 (k,) each; at least one.
        epsilon: ε.
        batch: What the losses are of.
    """
    whole = estimate(losses, theta, directions, epsilon, batch)
    small = estimate(losses, theta, directions, epsilon / NOISE_SCALE, batch)
    beyond = [
        part.loss_difference - full.loss_difference / NOISE_SCALE for part, full in zip(small, whole, strict=True)
    ]
    return NoiseFloor(_rms(beyond), _rms([full.loss_difference for full in whole]))


def _rms(numbers: Sequence[float]) -> float:
    return math.sqrt(statistics.fmean(number**2 for number in numbers))
