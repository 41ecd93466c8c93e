"""From hidden states at the wanted positions to the log-probabilities of tokens, and back.

    forward     log softmax(head(h))[target]                        no gradient
    backward    dh = Σ_targets w · ∂ log softmax(head(h))[target] / ∂h

A portion of positions at a time, so that logits and what a gradient makes of them stay within three portions, however
many positions there are. The head is computed once for each direction. Knows nothing about losses or blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from device_client.model.gradient.bounds import positions_at_once
from device_client.model.output_head import OutputHead


@torch.no_grad()
def log_probabilities(head: OutputHead, states: Tensor, targets: Tensor) -> Tensor:
    """Return log softmax of the logits at the target tokens, float32 (n, width).

    Args:
        head: Computes logits.
        states: Compute dtype (n, hidden).
        targets: int64 (n, width).
    """
    return torch.cat([_read(head, *portion) for portion in _portions(head, states, targets)])


def states_gradient(head: OutputHead, states: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Return the gradient of Σ weights · log-probabilities for the hidden states, compute dtype (n, hidden).

    Args:
        head: Computes logits; differentiable, see ``passes.differentiable``.
        states: Compute dtype (n, hidden).
        targets: int64 (n, width).
        weights: float32 (n, width).
    """
    found: list[Tensor] = []
    for states_of, targets_of, weights_of in _portions(head, states, targets, weights):
        leaf = states_of.detach().requires_grad_()
        with torch.enable_grad():
            weighted = (_read(head, leaf, targets_of) * weights_of).sum()
        found += torch.autograd.grad(weighted, leaf)
    return torch.cat(found)


def _read(head: OutputHead, states: Tensor, targets: Tensor) -> Tensor:
    return torch.log_softmax(head(states).float(), dim=1).gather(1, targets)


def _portions(head: OutputHead, *tensors: Tensor) -> zip[tuple[Tensor, ...]]:
    return zip(*(torch.split(tensor, positions_at_once(head.vocabulary)) for tensor in tensors), strict=True)
