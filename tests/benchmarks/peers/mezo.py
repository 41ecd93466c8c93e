"""A step of MeZO: zeroth-order descent on all parameters of a plain 16-bit model, in place.

    θ ← θ + ε·z(seed),  L₊;   θ ← θ − 2ε·z(seed),  L₋;   θ ← θ + ε·z(seed)
    g = (L₊ − L₋) / 2ε
    θ ← θ − η·g·z(seed)

Symbols: θ all parameters, in the model's dtype · z standard normal, never kept: drawn again, parameter by parameter,
from the step's seed in each of the four passes over θ · ε ``epsilon`` · η ``lr`` · L mean cross-entropy of the answers.
Costs two forward passes and four draws of as many normal values as the model has parameters; beside the model it holds
the z of one parameter. As its users run it, θ is perturbed in its 16 bits and so drifts by rounding.
References: Malladi et al. 2023, Fine-Tuning Language Models with Just Forward Passes, Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from peers.labelled_batch import LabelledBatch, mean_answer_loss
from torch import Tensor, nn

GENEROUS = (
    "θ moves by one fused add_ in place; the published code allocates the sum and two products of each parameter",
    "the head sees the answer positions only, unless full_logits is asked for",
    "no padding mask is made, unless full_logits is asked for, so attention takes its fastest causal kernel",
    "the loss is float32 also over 16-bit logits",
    "one synchronisation a step: both losses stay on the device until g is needed",
)
"""Where this peer is given more than its users have."""


@dataclass(frozen=True, slots=True)
class MezoStep:
    """What a step measured.

    Attributes:
        losses: (L₊, L₋), nats per answer token.
        projected_gradient: g.
    """

    losses: tuple[float, float]
    projected_gradient: float


@torch.no_grad()
def move_along(parameters: Iterable[nn.Parameter], seed: int, distance: float) -> None:
    """θ ← θ + distance · z(seed), in place, each parameter rounded to its own dtype.

    Args:
        parameters: All on one device; the same ones in the same order give the same z.
        seed: Of the step.
        distance: ±ε, −2ε or −η·g.
    """
    generator: torch.Generator | None = None
    for parameter in parameters:
        generator = generator or torch.Generator(parameter.device).manual_seed(seed)
        parameter.add_(_draw(parameter, generator), alpha=distance)


def _draw(parameter: Tensor, generator: torch.Generator) -> Tensor:
    return torch.normal(
        0.0, 1.0, tuple(parameter.shape), generator=generator, dtype=parameter.dtype, device=parameter.device
    )


@torch.no_grad()
def mezo_step(
    network: nn.Module, batch: LabelledBatch, *, epsilon: float, lr: float, seed: int, full_logits: bool = False
) -> MezoStep:
    """Make one step on all parameters, and return what it measured.

    Args:
        network: A plain transformers causal language model on one device; changed in place. Tied parameters move once.
        batch: Runs whole: the caller chooses how much fits.
        epsilon: ε; MeZO's users take 1e-3.
        lr: η.
        seed: Of z; another one for each step.
        full_logits: See ``wanted_logits``.
    """
    parameters = list(network.parameters())
    move_along(parameters, seed, epsilon)
    above = mean_answer_loss(network, batch, full_logits=full_logits)
    move_along(parameters, seed, -2 * epsilon)
    below = mean_answer_loss(network, batch, full_logits=full_logits)
    move_along(parameters, seed, epsilon)
    first, second = torch.stack([above, below]).tolist()
    gradient = (first - second) / (2 * epsilon)
    move_along(parameters, seed, -lr * gradient)
    return MezoStep((first, second), gradient)
