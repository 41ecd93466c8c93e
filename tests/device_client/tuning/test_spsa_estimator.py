"""The estimator against closed forms."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from torch import Tensor

from device_client.model.points import Point
from device_client.tuning.spsa import Estimate, descend, estimate, perturbed
from shared.perturbation import perturbation


def one_row(losses: Iterable[float]) -> Tensor:
    """Losses of a batch of one row, one for each point."""
    return torch.tensor([[loss] for loss in losses], dtype=torch.float64)


def cosine_losses(thetas: Iterable[Point], batch: float) -> Tensor:
    """A smooth function whose derivative autograd knows as well."""
    return one_row(float(smooth(theta[:].double(), batch)) for theta in thetas)


def smooth(theta: Tensor, batch: float) -> Tensor:
    return torch.cos(theta * torch.arange(1, len(theta) + 1)).sum() + batch * (theta**2).sum()


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
def test_the_mean_of_g_z_is_the_gradient(distribution: str) -> None:
    """E[g·z] = ∇L. With n = 8,000 draws each coordinate's standard error is about ‖∇L‖ / √n."""
    theta = torch.tensor([0.3, -0.2, 0.5, 0.1])
    exact = torch.autograd.functional.jacobian(lambda t: smooth(t, 0.25), theta.double())
    draws = 8_000
    total = torch.zeros(4, dtype=torch.float64)
    for step in range(draws):
        z = torch.from_numpy(perturbation(7, step, 0, 4, distribution))  # type: ignore[arg-type]
        total += estimate(cosine_losses, theta, [z], 1e-3, 0.25)[0].projected_gradient * z.double()
    standard_error = float(exact.norm()) * math.sqrt(2 / draws)
    assert torch.allclose(total / draws, exact, atol=5 * standard_error)


def test_swapping_the_signs_flips_g() -> None:
    theta, z = torch.tensor([0.3, -0.2]), torch.tensor([1.5, -0.5])
    [forth] = estimate(cosine_losses, theta, [z], 1e-3, 0.1)
    [back] = estimate(cosine_losses, theta, [-z], 1e-3, 0.1)
    assert back.projected_gradient == -forth.projected_gradient != 0
    assert back.clean_loss == forth.clean_loss


def test_g_of_a_line_is_its_slope_along_z() -> None:
    """L = 3θ₀ − 2θ₁ and z = (1, 2): g = 3·1 − 2·2 = −1."""
    [found] = estimate(
        lambda thetas, _: one_row(float(3 * t[:][0] - 2 * t[:][1]) for t in thetas),
        torch.zeros(2), [torch.tensor([1.0, 2.0])], 0.125, None,
    )  # fmt: skip
    assert found.projected_gradient == -1.0
    assert found.clean_loss == 0.0


@pytest.mark.parametrize("losses", [(math.nan, 1.0), (1.0, math.inf), (-math.inf, math.inf)])
def test_a_loss_that_is_not_finite_gives_no_g(losses: tuple[float, float]) -> None:
    assert math.isnan(Estimate(*losses, distance=2e-3).projected_gradient)


def test_both_signs_of_every_query_start_from_the_same_theta() -> None:
    seen: list[list[float]] = []

    def remember(thetas: Iterable[Point], _batch: None) -> Tensor:
        seen.extend(theta[:].tolist() for theta in thetas)
        return torch.zeros(len(seen), 1)

    theta = torch.tensor([1.0, 2.0])
    estimate(remember, theta, [torch.tensor([1.0, -1.0]), torch.tensor([2.0, 0.0])], 0.5, None)
    assert seen == [[1.5, 1.5], [0.5, 2.5], [2.0, 2.0], [0.0, 2.0]]
    assert theta.tolist() == [1.0, 2.0]


def test_each_query_gets_the_losses_of_its_own_signs() -> None:
    directions = [torch.tensor([1.0]), torch.tensor([3.0])]
    found = estimate(lambda thetas, _: one_row(float(theta[:]) for theta in thetas), torch.zeros(1), directions, 1, 0)
    assert [(query.loss_plus, query.loss_minus) for query in found] == [(1, -1), (3, -3)]


def test_descend_moves_against_g_along_z() -> None:
    moved = descend(torch.tensor([1.0, 1.0]), [torch.tensor([1.0, 2.0])], [4.0], lr=0.125)
    assert moved.tolist() == [0.5, 0.0]


def test_queries_are_averaged() -> None:
    directions = [torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])]
    assert descend(torch.zeros(2), directions, [2.0, -4.0], lr=1.0).tolist() == [-1.0, 2.0]


def test_descend_is_one_float32_product_and_difference_per_value() -> None:
    """Compared with numpy, which fuses nothing: any machine must get these bits."""
    z = perturbation(1, 0, 0, 10_001)
    theta = perturbation(1, 1, 0, 10_001)
    factor = np.float32(np.float32(3e-4) * np.float32(1.7)) / np.float32(1)
    expected = theta - z * factor
    moved = descend(
        torch.from_numpy(theta), [torch.from_numpy(z)], [float(np.float32(1.7))], lr=float(np.float32(3e-4))
    )
    assert np.array_equal(moved.numpy(), expected)


def test_a_thousand_steps_at_lr_zero_leave_theta_bit_identical() -> None:
    theta = torch.from_numpy(perturbation(3, 0, 0, 64))
    before = theta.clone()
    for step in range(1000):
        z = torch.from_numpy(perturbation(4, step, 0, 64))
        [found] = estimate(cosine_losses, theta, [z], 1e-3, 0.1)
        theta = descend(theta, [z], [found.projected_gradient], lr=0.0)
    assert torch.equal(theta, before)


def test_a_perturbed_point_is_the_same_whole_and_in_parts() -> None:
    """And one float32 product and sum per value: compared with numpy, which fuses nothing."""
    theta, z = (torch.from_numpy(perturbation(3, step, 0, 20_001)) for step in (0, 1))
    plus, minus = perturbed(theta, [z], 1e-3)

    step = z.numpy() * np.float32(1e-3)
    assert np.array_equal(plus[:].numpy(), theta.numpy() + step)
    assert np.array_equal(minus[:].numpy(), theta.numpy() - step)
    assert torch.equal(torch.cat([minus[0:7001], minus[7001:14002], minus[14002:21003]]), minus[:])
    assert (plus.shape, plus.dtype) == (theta.shape, torch.float32)
