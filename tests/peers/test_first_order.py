"""The first-order peers against autograd through plain weights."""

from __future__ import annotations

import copy

import pytest
import torch
from peers.first_order import ALPHA, RANK, FirstOrder, LoraLinear, lora, qlora
from peers.labelled_batch import LabelledBatch, mean_answer_loss, random_batch, wanted_logits
from random_bundle import Case, make_case
from torch import nn

from device_client.model.loader import load_model
from device_client.model.sparse_model import SparseModel

ADAPTED_LAYERS = 4  # q and v of two blocks


@pytest.fixture(scope="module", params=["per_row", "uniform"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("first-order"), "llama", request.param)


@pytest.fixture(scope="module")
def batch() -> LabelledBatch:
    return random_batch(3, 9, 259, device="cpu", seed=1)


def packed(case: Case) -> SparseModel:
    return load_model(case.bundle, device="cpu", compute_dtype=torch.float32)


def adapted(network: nn.Module) -> dict[str, LoraLinear]:
    return {name: module for name, module in network.named_modules() if isinstance(module, LoraLinear)}


def fill_up(trainer: FirstOrder) -> None:
    """Give B values other than zero, so that A has a gradient too."""
    generator = torch.Generator().manual_seed(5)
    for module in adapted(trainer.network).values():
        module.up.data.copy_(torch.randn(module.up.shape, generator=generator) * 0.05)


@pytest.mark.parametrize("checkpoint_blocks", [False, True])
def test_gradients_over_packed_weights_follow_from_those_of_plain_weights(
    case: Case, batch: LabelledBatch, checkpoint_blocks: bool
) -> None:
    trainer = qlora(packed(case), checkpoint_blocks=checkpoint_blocks)
    fill_up(trainer)
    loss = trainer.backward(batch)
    # The plain model with W + s·B·A put into its weights; then ∂L/∂B = s·∂L/∂W·Aᵀ and ∂L/∂A = s·Bᵀ·∂L/∂W.
    plain, scale = copy.deepcopy(case.reference), ALPHA / RANK
    for name, module in adapted(trainer.network).items():
        plain.get_submodule(name).weight.data += scale * (module.up @ module.down).detach()
    plain_loss = mean_answer_loss(plain, batch)
    plain_loss.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(loss, plain_loss.detach(), rtol=1e-5, atol=1e-5)
    assert len(adapted(trainer.network)) == ADAPTED_LAYERS
    for name, module in adapted(trainer.network).items():
        gradient = plain.get_submodule(name).weight.grad
        assert float(gradient.abs().max()) > 0
        torch.testing.assert_close(module.up.grad, scale * gradient @ module.down.detach().T, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(module.down.grad, scale * module.up.detach().T @ gradient, rtol=1e-3, atol=1e-6)


def test_lora_over_plain_weights_has_the_gradients_of_the_packed_ones(case: Case, batch: LabelledBatch) -> None:
    trainers = [lora(copy.deepcopy(case.reference)), qlora(packed(case))]
    for trainer in trainers:
        fill_up(trainer)
        trainer.backward(batch)
    for one, other in zip(trainers[0].adapters, trainers[1].adapters, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-6)


def test_fresh_adapters_change_no_logit(case: Case, batch: LabelledBatch) -> None:
    model = packed(case)
    with torch.no_grad():
        before = wanted_logits(model.network, batch.tokens)
        plain_before = wanted_logits(case.reference, batch.tokens)
        packed_after = wanted_logits(qlora(model).network, batch.tokens)
        plain_after = wanted_logits(lora(copy.deepcopy(case.reference)).network, batch.tokens)
    assert torch.equal(packed_after, before)
    assert torch.equal(plain_after, plain_before)


@pytest.mark.parametrize("kind", ["lora", "qlora"])
def test_steps_lower_the_loss_and_move_the_adapters_alone(case: Case, batch: LabelledBatch, kind: str) -> None:
    trainer = lora(copy.deepcopy(case.reference), lr=1e-2) if kind == "lora" else qlora(packed(case), lr=1e-2)
    frozen = [p for p in trainer.network.parameters() if not any(p is adapter for adapter in trainer.adapters)]
    before = [parameter.clone() for parameter in frozen]
    losses = [trainer.step(batch) for _ in range(8)]
    assert losses[-1] < losses[0] - 0.1
    assert all(torch.equal(now, then) for now, then in zip(frozen, before, strict=True))
    assert all(parameter.grad is None for parameter in frozen)


def test_checkpointing_runs_the_layers_of_every_block_again(case: Case, batch: LabelledBatch) -> None:
    calls = {}
    for checkpoint_blocks in (False, True):
        trainer = qlora(packed(case), checkpoint_blocks=checkpoint_blocks)
        count = [0]
        for module in adapted(trainer.network).values():
            module.register_forward_hook(lambda *_, count=count: count.__setitem__(0, count[0] + 1))
        trainer.backward(batch)
        calls[checkpoint_blocks] = count[0]
    assert calls == {False: ADAPTED_LAYERS, True: 2 * ADAPTED_LAYERS}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_weights_train_float32_adapters_with_nearly_the_same_gradients(
    case: Case, batch: LabelledBatch, dtype: torch.dtype
) -> None:
    exact = lora(copy.deepcopy(case.reference))
    rounded = lora(copy.deepcopy(case.reference).to(dtype))
    for trainer in (exact, rounded):
        fill_up(trainer)
        trainer.backward(batch)
    ours = torch.cat([adapter.grad.flatten() for adapter in rounded.adapters])
    right = torch.cat([adapter.grad.flatten() for adapter in exact.adapters])
    assert ours.dtype == torch.float32
    # bfloat16 keeps 8 bits; rounding errors of a few layers add up to some hundredths
    assert float((ours - right).norm() / right.norm()) < 0.1


def test_adapters_may_be_in_the_base_dtype(case: Case, batch: LabelledBatch) -> None:
    trainer = lora(copy.deepcopy(case.reference).to(torch.bfloat16), adapter_dtype=torch.bfloat16, lr=1e-2)
    losses = [trainer.step(batch) for _ in range(5)]
    assert {adapter.dtype for adapter in trainer.adapters} == {torch.bfloat16}
    assert losses[-1] < losses[0]
