"""The Fisher diagonal against squares of per-example gradients computed one by one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cloud_service.pipeline.fisher import FisherSums, accumulate, empty_sums
from cloud_service.pipeline.load_model import LoadedModel, load_model
from shared.errors import UnsupportedModel

MakeCheckpoint = Callable[..., Path]


@pytest.fixture
def model(make_checkpoint: MakeCheckpoint) -> LoadedModel:
    return load_model(make_checkpoint(), device="cpu")


@pytest.fixture
def sequences() -> Tensor:
    return torch.randint(0, 256, (5, 24), generator=torch.Generator().manual_seed(1), dtype=torch.int32)


def run(model: LoadedModel, sequences: Tensor, sums: FisherSums, *, checkpointing: bool = False) -> FisherSums:
    weights = {name: model.parameters[name] for name in model.linear_names}
    blocks = model.blocks if checkpointing else []
    accumulate(model.network, weights, sequences, sums, recomputed_blocks=blocks, after_sequence=lambda _: None)
    return sums


def fresh(model: LoadedModel) -> FisherSums:
    return empty_sums({name: model.parameters[name] for name in model.linear_names})


def loss_of(model: LoadedModel, batch: Tensor) -> Tensor:
    logits = model.network(input_ids=batch.long()).logits
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].long().flatten())


def gradients(model: LoadedModel, batch: Tensor) -> list[Tensor]:
    weights = [model.parameters[name].requires_grad_(True) for name in model.linear_names]
    return list(torch.autograd.grad(loss_of(model, batch), weights))


def test_fisher_is_the_mean_of_squared_per_example_gradients(model: LoadedModel, sequences: Tensor) -> None:
    expected = [torch.zeros_like(model.parameters[name]) for name in model.linear_names]
    for sequence in sequences:
        for total, gradient in zip(expected, gradients(model, sequence[None]), strict=True):
            total += gradient**2 / len(sequences)
    diagonal = run(model, sequences, fresh(model)).into_diagonal()
    for name, total in zip(model.linear_names, expected, strict=True):
        # Float32 sums in another order: a few units in the last place of the largest term.
        torch.testing.assert_close(diagonal[name], total, rtol=1e-5, atol=1e-12)


def test_the_square_of_the_batch_gradient_is_another_quantity(model: LoadedModel, sequences: Tensor) -> None:
    batch = gradients(model, sequences)[0] ** 2
    diagonal = run(model, sequences, fresh(model)).into_diagonal()[model.linear_names[0]]
    assert float(batch.sum()) < 0.6 * float(diagonal.sum())


def test_every_second_sequence_goes_to_the_other_half(model: LoadedModel, sequences: Tensor) -> None:
    whole = run(model, sequences, fresh(model))
    even = run(model, sequences[::2], fresh(model)).into_diagonal()
    for name in model.linear_names:
        torch.testing.assert_close(whole.even[name], even[name] * 3, rtol=1e-5, atol=1e-12)


def test_no_gradient_is_left_and_only_linear_weights_ever_have_one(model: LoadedModel, sequences: Tensor) -> None:
    seen: set[str] = set()

    def look(_: FisherSums) -> None:
        seen.update(name for name, parameter in model.parameters.items() if parameter.grad is not None)

    weights = {name: model.parameters[name] for name in model.linear_names}
    accumulate(model.network, weights, sequences, fresh(model), after_sequence=look)
    assert seen == set()
    assert not any(parameter.requires_grad for parameter in model.parameters.values())


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_gradient_checkpointing_changes_no_bit(make_checkpoint: MakeCheckpoint, sequences: Tensor, family: str) -> None:
    model = load_model(make_checkpoint(family), device="cpu")
    plain, recomputed = run(model, sequences, fresh(model)), run(model, sequences, fresh(model), checkpointing=True)
    assert all(torch.equal(plain.even[name], recomputed.even[name]) for name in model.linear_names)
    assert all("forward" not in vars(block) for block in model.blocks)


def test_sums_restored_from_a_checkpoint_go_on_bit_for_bit(model: LoadedModel, sequences: Tensor) -> None:
    whole = run(model, sequences, fresh(model))
    half = run(model, sequences[:3], fresh(model))
    resumed = fresh(model)
    resumed.restore(*half.to_tensors())
    run(model, sequences, resumed)
    assert resumed.count == 5
    assert all(torch.equal(whole.even[name], resumed.even[name]) for name in model.linear_names)
    assert all(torch.equal(whole.odd[name], resumed.odd[name]) for name in model.linear_names)


def test_a_gradient_that_is_not_finite_is_named(model: LoadedModel, sequences: Tensor) -> None:
    sums = run(model, sequences, fresh(model))
    sums.odd[model.linear_names[3]][0, 0] = float("inf")
    with pytest.raises(UnsupportedModel, match=f"the gradient of {model.linear_names[3]} is not finite"):
        sums.into_diagonal()


def test_a_loss_that_is_not_finite_is_refused(model: LoadedModel, sequences: Tensor) -> None:
    model.parameters[model.linear_names[0]].data[0, 0] = float("nan")
    with pytest.raises(UnsupportedModel, match="the loss of calibration sequence 0 is not finite"):
        run(model, sequences, fresh(model))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_fisher_on_cuda_agrees_with_the_cpu(make_checkpoint: MakeCheckpoint, sequences: Tensor) -> None:
    folder = make_checkpoint()
    cpu, cuda = load_model(folder, device="cpu"), load_model(folder, device="cuda")
    expected = run(cpu, sequences, fresh(cpu)).into_diagonal()
    measured = run(cuda, sequences, fresh(cuda)).into_diagonal()
    for name in cpu.linear_names:
        torch.testing.assert_close(measured[name].cpu(), expected[name], rtol=1e-2, atol=1e-9)
