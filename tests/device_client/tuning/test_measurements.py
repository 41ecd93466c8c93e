"""Signal and curvature against autograd on a tiny network, and worked by hand."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor

from device_client.model.points import Point
from device_client.tuning.measurements import Findings, Sample, curvature, pair_signal, summarise
from device_client.tuning.spsa import estimate
from shared.perturbation import Distribution, perturbation

ROWS, FEATURES, HIDDEN = 5, 3, 2
COUNT = FEATURES * HIDDEN + HIDDEN
DRAWS = 2_000
EPSILON = 1e-3
GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(ROWS, FEATURES, generator=GENERATOR, dtype=torch.float64)
TARGETS = torch.randn(ROWS, generator=GENERATOR, dtype=torch.float64)
THETA = torch.randn(COUNT, generator=GENERATOR)


def row_losses(theta: Tensor) -> Tensor:
    """A network of one hidden layer, squared error of each row."""
    first, second = theta[: FEATURES * HIDDEN].view(FEATURES, HIDDEN), theta[FEATURES * HIDDEN :]
    return (torch.tanh(INPUTS @ first) @ second - TARGETS) ** 2


def losses(thetas: Iterable[Point], _batch: None) -> Tensor:
    return torch.stack([row_losses(theta[:].double()) for theta in thetas])


def batch_loss(theta: Tensor) -> Tensor:
    return row_losses(theta).mean()


def draws(distribution: Distribution) -> Iterable[Tensor]:
    return (torch.from_numpy(perturbation(7, step, 0, COUNT, distribution)) for step in range(DRAWS))


def is_near(found: list[float], expected: float) -> bool:
    """Whether the mean lies within four of its own standard errors."""
    values = torch.tensor(found, dtype=torch.float64)
    return abs(float(values.mean()) - expected) < 4 * float(values.std()) / math.sqrt(len(found))


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
def test_signal_is_the_squared_length_of_the_mean_gradient_without_the_rows_own_noise(
    distribution: Distribution,
) -> None:
    """The mean over pairs of different rows, not the squared length of the batch's gradient, which contains noise."""
    gradients = torch.autograd.functional.jacobian(row_losses, THETA.double())
    products = gradients @ gradients.T
    pairs = (products.sum() - products.diagonal().sum()) / (ROWS * (ROWS - 1))
    found = [estimate(losses, THETA, [z], EPSILON, None)[0].signal for z in draws(distribution)]
    assert is_near(found, float(pairs))
    assert not is_near(found, float(products.mean()))


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
def test_the_mean_square_of_g_is_the_squared_length_of_the_batchs_gradient(distribution: Distribution) -> None:
    gradient = torch.autograd.functional.jacobian(batch_loss, THETA.double())
    found = [estimate(losses, THETA, [z], EPSILON, None)[0].projected_gradient ** 2 for z in draws(distribution)]
    assert is_near(found, float(gradient @ gradient))


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
def test_curvature_is_the_trace_of_the_hessian(distribution: Distribution) -> None:
    hessian = torch.autograd.functional.hessian(batch_loss, THETA.double())
    loss = float(batch_loss(THETA.double()))
    found = [
        curvature(estimate(losses, THETA, [z], EPSILON, None)[0].clean_loss, loss, EPSILON) for z in draws(distribution)
    ]
    assert is_near(found, float(hessian.trace()))


def test_one_sided_directions_find_the_same_gradient() -> None:
    """E[g·z] = ∇L for each of the directions of a step."""
    gradient = torch.autograd.functional.jacobian(batch_loss, THETA.double())
    products: list[Tensor] = []
    for step in range(DRAWS):
        directions = [torch.from_numpy(perturbation(7, step, query, COUNT)) for query in range(3)]
        found = estimate(losses, THETA, directions, EPSILON, None, "one-sided")
        products += [one.projected_gradient * z.double() for one, z in zip(found, directions, strict=True)]
    for along in range(COUNT):
        assert is_near([float(product[along]) for product in products], float(gradient[along]))


def test_one_sided_directions_compare_each_with_the_mean_of_the_others() -> None:
    """L = θ at ε·z = 1, 2 and 6: 1 − 4, 2 − 3.5 and 6 − 1.5, over ε = 1; one point per direction."""
    seen: list[float] = []

    def line(thetas: Iterable[Point], _batch: None) -> Tensor:
        seen.extend(float(theta[:]) for theta in thetas)
        return torch.tensor([[value] for value in seen], dtype=torch.float64)

    directions = [torch.tensor([value]) for value in (1.0, 2.0, 6.0)]
    found = estimate(line, torch.zeros(1), directions, 1.0, None, "one-sided")
    assert [one.projected_gradient for one in found] == [-3.0, -1.5, 4.5]
    assert seen == [1.0, 2.0, 6.0]


def test_pairs_worked_by_hand() -> None:
    """Rows 1, 2, 3: ordered pairs 2·(2 + 3 + 6) = 22 of 6."""
    assert pair_signal([1.0, 2.0, 3.0]) == pytest.approx(22 / 6)
    assert math.isnan(pair_signal([5.0]))


def test_findings_are_means_of_what_was_measured() -> None:
    """V = 20, s = 5, f = (2·10 − 4 + 2·30 − 6)/2: ρ = 1/4, noise and signal equal at 16·3 rows; 0.01·5 − 1e-4·350."""
    found = summarise([Sample(10.0, 4.0, 8.0), Sample(30.0, 6.0, math.nan)], 2)
    assert found == Findings(20.0, 5.0, 35.0)
    assert found.signal_share == 0.25
    assert found.useful_batch(16) == 48.0
    assert found.expected_fall(0.01, queries=1) == pytest.approx(0.05 - 0.035)
    assert found.expected_fall(0.01, queries=4) == pytest.approx(0.05 - 0.00875)


def test_second_differences_count_where_they_are_clearly_larger() -> None:
    """80 less twice √2·10/√2; one sample alone says nothing."""
    assert summarise([Sample(10.0, 4.0, 70.0), Sample(30.0, 6.0, 90.0)], 2).curvature == pytest.approx(60)
    assert summarise([Sample(10.0, 4.0, 80.0), Sample(30.0, 6.0)], 2).curvature == 35.0


def test_the_squares_of_single_rows_follow_from_signal_and_mean_square() -> None:
    """Rows of 1, 2 and 6: g = 3, s = (81 − 41)/6; 41/3."""
    assert Sample(9.0, pair_signal([1.0, 2.0, 6.0])).row_square(3) == pytest.approx(41 / 3)
    assert Sample(9.0).row_square(1) == 9.0


def test_a_negative_signal_is_no_signal() -> None:
    found = summarise([Sample(10.0, -4.0, 8.0)], 2)
    assert (found.signal_share, found.useful_batch(16)) == (0.0, math.inf)
