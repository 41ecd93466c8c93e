"""Adam against torch's, and its state."""

from __future__ import annotations

import pytest
import torch

from device_client.tuning.adam import Adam
from shared.errors import IntegrityError

COUNT = 50
CPU = torch.device("cpu")


def gradients(steps: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(COUNT, generator=generator) for _ in range(steps)]


def test_it_moves_as_torchs_adam_does() -> None:
    theta, ours = torch.ones(COUNT), Adam(COUNT, CPU)
    parameter = torch.nn.Parameter(theta.clone())
    theirs = torch.optim.Adam([parameter], lr=2e-3)
    for gradient in gradients(30):
        parameter.grad = gradient.clone()
        theirs.step()
        theta = ours.descend(theta, gradient.clone(), 2e-3)
    torch.testing.assert_close(theta, parameter.detach(), rtol=1e-6, atol=1e-6)


def test_the_first_step_is_as_long_as_the_rate_in_every_coordinate() -> None:
    gradient = torch.tensor([1e-3, -1.0, 50.0])
    moved = Adam(3, CPU).descend(torch.zeros(3), gradient, 0.25)
    torch.testing.assert_close(moved, torch.tensor([-0.25, 0.25, -0.25]), rtol=1e-4, atol=0)


def test_theta_is_left_as_it_is() -> None:
    theta = torch.ones(COUNT)
    Adam(COUNT, CPU).descend(theta, gradients(1)[0], 0.1)
    assert torch.equal(theta, torch.ones(COUNT))


def test_a_restored_state_makes_the_same_bits() -> None:
    theta, whole = torch.ones(COUNT), Adam(COUNT, CPU)
    for step, gradient in enumerate(gradients(10)):
        if step == 6:
            state = {name: kept.clone() for name, kept in whole.state().items()}
            again, theta_again = Adam(COUNT, CPU), theta.clone()
            again.restore(state)
        if step >= 6:
            theta_again = again.descend(theta_again, gradient.clone(), 1e-2)
        theta = whole.descend(theta, gradient.clone(), 1e-2)
    assert torch.equal(theta_again, theta)


@pytest.mark.parametrize("lost", ["adam_first", "adam_steps", None])
def test_a_state_of_something_else_is_refused(lost: str | None) -> None:
    state = Adam(COUNT if lost else COUNT + 1, CPU).state()
    kept = {name: value for name, value in state.items() if name != lost}
    with pytest.raises(IntegrityError, match="Adam's moments"):
        Adam(COUNT, CPU).restore(kept)
