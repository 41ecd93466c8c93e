"""Whether a perturbation survives rounding: z as it was asked for against z as the compute format realises it.

    z̃ = (cast(θ + ε·z) − cast(θ − ε·z)) / (2·ε)          loss of fidelity = ‖z̃ − z‖ / ‖z‖

A 16-bit weight has a spacing; where ε is not well above it, the two signs are rounded to something else than ±ε·z and
g measures another direction than the one θ is moved along. In float32 nothing is lost. Costs two casts of k values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from shared.errors import InvalidRequest

MAX_LOST_SHARE = 0.05


def lost_share(theta: Tensor, z: Tensor, epsilon: float, compute_dtype: torch.dtype) -> float:
    """Return ‖z̃ − z‖ / ‖z‖, 0 … : 0 is exact, 1 is a perturbation rounded away."""
    step = z * epsilon
    plus, minus = (theta + step).to(compute_dtype).float(), (theta - step).to(compute_dtype).float()
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
    dtype = str(compute_dtype).removeprefix("torch.")
    raise InvalidRequest(
        f"rounding to {dtype} loses {share:.0%} of a perturbation of ε = {epsilon:g}",
        needed=f"at most {MAX_LOST_SHARE:.0%}",
        next_step=f"--epsilon {enough:g}",
        param="epsilon",
    )
