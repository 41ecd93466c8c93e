"""Divergence and perplexity from hidden states against their definitions."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from prediction_distance import distance, reference_states
from random_network import TINY, random_network
from torch import nn

WINDOWS = [[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1]]


def tiny_network() -> nn.Module:
    return random_network(TINY, device="cpu", dtype=torch.float32).network


def moved(network: nn.Module) -> nn.Module:
    other = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(2)
    for parameter in other.base_model.layers.parameters():  # type: ignore[union-attr, operator]
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return other


def test_divergence_and_perplexity_are_those_of_the_definition() -> None:
    network = tiny_network()
    other = moved(network)
    found = distance(other, WINDOWS, reference_states(network, WINDOWS))
    divergence, loss = 0.0, 0.0
    for window in WINDOWS:
        tokens = torch.tensor([window])
        with torch.no_grad():
            log_p, log_q = (each(input_ids=tokens).logits[0, :-1].double().log_softmax(1) for each in (network, other))
        divergence += float((log_p.exp() * (log_p - log_q)).sum())
        loss -= float(log_q[range(len(window) - 1), window[1:]].sum())
    assert found.tokens == 9
    assert found.kl == pytest.approx(divergence / 9, rel=1e-4)
    assert found.kl > 1e-4
    assert found.perplexity == pytest.approx(math.exp(loss / 9), rel=1e-5)


def test_a_network_does_not_differ_from_itself() -> None:
    network = tiny_network()
    assert abs(distance(network, WINDOWS, reference_states(network, WINDOWS)).kl) < 1e-6
