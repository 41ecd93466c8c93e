"""MeZO's step against the same step written out by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from peers.labelled_batch import LabelledBatch, mean_answer_loss, random_batch
from peers.mezo import mezo_step, move_along
from random_bundle import make_case
from torch import Tensor, nn

from device_client.model.token_batch import TokenBatch

EPSILON, SEED = 1e-2, 7


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    return make_case(tmp_path_factory.mktemp("mezo"), "llama").reference


@pytest.fixture(scope="module")
def batch() -> LabelledBatch:
    return random_batch(3, 9, 259, device="cpu", seed=1)


def loss_by_hand(network: nn.Module, batch: LabelledBatch) -> float:
    with torch.no_grad():
        logits = network(input_ids=batch.tokens.input_ids).logits.double()
    right = torch.log_softmax(logits[:, -1], dim=-1)[torch.arange(len(batch.answers)), batch.answers]
    return -float(right.mean())


def moved(network: nn.Module, directions: list[Tensor], distance: float) -> nn.Module:
    other = copy.deepcopy(network)
    for parameter, z in zip(other.parameters(), directions, strict=True):
        parameter.data = parameter.data + distance * z
    return other


def directions_of(network: nn.Module, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.normal(0.0, 1.0, parameter.shape, generator=generator) for parameter in network.parameters()]


def test_the_projected_gradient_is_the_central_difference_along_the_same_z(
    plain: nn.Module, batch: LabelledBatch
) -> None:
    directions = directions_of(plain, SEED)
    above = loss_by_hand(moved(plain, directions, EPSILON), batch)
    below = loss_by_hand(moved(plain, directions, -EPSILON), batch)
    step = mezo_step(copy.deepcopy(plain), batch, epsilon=EPSILON, lr=0.0, seed=SEED)
    assert step.losses == pytest.approx((above, below), rel=1e-5)
    # float32 losses near 6 differ by about 1e-6, divided by 2ε
    assert step.projected_gradient == pytest.approx((above - below) / (2 * EPSILON), abs=3e-4)


def test_all_parameters_descend_along_z_by_lr_times_g(plain: nn.Module, batch: LabelledBatch) -> None:
    tuned = copy.deepcopy(plain)
    step = mezo_step(tuned, batch, epsilon=EPSILON, lr=0.1, seed=SEED)
    assert abs(step.projected_gradient) > 0.1
    wanted = moved(plain, directions_of(plain, SEED), -0.1 * step.projected_gradient)
    for parameter, right in zip(tuned.parameters(), wanted.parameters(), strict=True):
        torch.testing.assert_close(parameter, right, rtol=1e-5, atol=1e-6)


def test_perturbing_and_back_leaves_float32_parameters_within_rounding(plain: nn.Module) -> None:
    network = copy.deepcopy(plain)
    for distance in (EPSILON, -2 * EPSILON, EPSILON):
        move_along(network.parameters(), SEED, distance)
    changed = 0
    for parameter, before in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter, before, rtol=3e-7, atol=1e-8)
        changed += int((parameter != before).sum())
    assert changed > 0  # rounding is what MeZO's drift is made of


def test_another_seed_is_another_direction(plain: nn.Module) -> None:
    one, other = copy.deepcopy(plain), copy.deepcopy(plain)
    move_along(one.parameters(), 1, 1.0)
    move_along(other.parameters(), 2, 1.0)
    first, second = next(one.parameters()), next(other.parameters())
    assert not torch.equal(first, second)


def test_tied_parameters_move_once(plain: nn.Module) -> None:
    network = copy.deepcopy(plain)
    move_along(network.parameters(), SEED, 1.0)
    embedding = network.get_input_embeddings().weight  # type: ignore[operator]
    assert embedding is network.get_output_embeddings().weight  # type: ignore[operator]
    change = embedding - plain.get_input_embeddings().weight  # type: ignore[operator]
    assert float(change.detach().std()) == pytest.approx(1.0, abs=0.05)  # 8,288 draws; twice would give 1.4 or 2


def test_the_global_random_state_is_not_touched(plain: nn.Module, batch: LabelledBatch) -> None:
    before = torch.get_rng_state()
    mezo_step(copy.deepcopy(plain), batch, epsilon=EPSILON, lr=1e-6, seed=SEED)
    assert torch.equal(torch.get_rng_state(), before)


def test_it_runs_in_sixteen_bits(plain: nn.Module, batch: LabelledBatch) -> None:
    network = copy.deepcopy(plain).to(torch.bfloat16)
    step = mezo_step(network, batch, epsilon=EPSILON, lr=1e-6, seed=SEED)
    assert step.losses[0] == pytest.approx(loss_by_hand(plain, batch), rel=0.5)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.bfloat16}


def test_full_logits_give_the_same_loss(plain: nn.Module) -> None:
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    tokens = TokenBatch(ids, mask, torch.tensor([0, 0, 1]), torch.tensor([2, 3, 1]))
    batch = LabelledBatch(tokens, torch.tensor([8, 11, 12]))
    with torch.no_grad():
        torch.testing.assert_close(mean_answer_loss(plain, batch, full_logits=True), mean_answer_loss(plain, batch))


def test_as_many_answers_as_wanted_positions_are_needed(batch: LabelledBatch) -> None:
    with pytest.raises(ValueError, match=r"\(2,\) answers; needed \(3,\)"):
        LabelledBatch(batch.tokens, batch.answers[:2])
