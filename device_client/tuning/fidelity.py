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
from typing import TypeVar

import torch
from torch import Tensor

from device_client.devices import dtype_name
from device_client.tuning.spsa import Losses, estimate, perturbed
from shared.errors import InvalidRequest

BatchT = TypeVar("BatchT")

MAX_LOST_SHARE = 0.05
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


def noise_floor(
    losses: Losses[BatchT], theta: Tensor, directions: Sequence[Tensor], epsilon: float, batch: BatchT
) -> float:
    """Return how much of a ΔL of this batch is rounding, nats; NaN where a loss is not finite.

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
    return math.sqrt(statistics.fmean(difference**2 for difference in beyond))
