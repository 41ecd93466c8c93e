"""Low-rank factors beside packed weights: transformers' logits of W + (α/r)·BA, the same bits in any company."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from points_alone import assert_points_keep_their_bits
from random_bundle import Case
from token_rows import batch_of_lengths
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from device_client.model.backends.choose import BackendOptions
from device_client.model.kept_states import KeptStates
from device_client.model.loader import load_model
from device_client.model.methods import tuned_by
from device_client.model.sparse_model import SparseModel
from device_client.model.tunable_model import TunableModel
from device_client.model.upper_blocks import UpperBlocks
from device_client.planning.methods import tuned_part
from shared.architecture import FAMILIES
from shared.perturbation import perturbation

# One float32 forward of two tiny blocks: products are added up in another order than transformers adds them.
FLOAT32_FORWARD = {"rtol": 1e-5, "atol": 2e-5}
RANK, SCALE = 8, 2.0  # appendix C.4: r = 8, α = 16


def low_rank(model: SparseModel, blocks: str = "all", base: TunableModel | None = None) -> TunableModel:
    return tuned_by(tuned_part(model.config, "lora", blocks), model, base or model, seed=3)


def random_theta(tuned: TunableModel, seed: int = 1) -> Tensor:
    theta = tuned.initial_theta()
    return theta + 0.05 * torch.randn(theta.shape, generator=torch.Generator().manual_seed(seed))


def merged(case: Case, theta: Tensor) -> nn.Module:
    """Return transformers' network with (α/r)·BA added to its dense weights, A and B cut from θ one after the other."""
    network = copy.deepcopy(case.reference)
    begin = 0
    for entry in case.bundle.config.block_tensors:
        out_features, in_features = entry.shape
        middle, end = begin + RANK * in_features, begin + RANK * (in_features + out_features)
        change = SCALE * theta[middle:end].view(out_features, RANK) @ theta[begin:middle].view(RANK, in_features)
        module = network.get_submodule(entry.name.removesuffix(".weight"))
        module.weight.data += change.T if isinstance(module, Conv1D) else change
        begin = end
    assert begin == theta.numel()
    return network


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_logits_equal_those_of_transformers_with_the_factors_in_its_weights(case_of: Callable, model_type: str) -> None:
    case, batch = case_of(model_type), batch_of_lengths(12, 12)
    model = load_model(case.bundle, device="cpu")
    tuned = low_rank(model)
    theta = random_theta(tuned)
    with torch.no_grad():
        expected, without = (
            network(batch.input_ids).logits[batch.logit_rows, batch.logit_columns]
            for network in (merged(case, theta), case.reference)
        )

    tuned.write_points([theta])

    torch.testing.assert_close(tuned.logits(batch)[0], expected, **FLOAT32_FORWARD)
    assert (expected - without).abs().max() > 0.01


def test_a_run_begins_with_the_bundles_own_logits_bit_for_bit(case_of: Callable) -> None:
    bundle, batch = case_of().bundle, batch_of_lengths(12, 7)
    own = load_model(bundle, device="cpu").logits(batch)
    tuned = low_rank(load_model(bundle, device="cpu"))

    tuned.write_points([tuned.initial_theta()])

    assert torch.equal(tuned.logits(batch), own)  # B is zero, and x + 0 is x


def test_a_begins_as_the_seeds_noise_and_b_as_zeros(case_of: Callable) -> None:
    model = load_model(case_of().bundle, device="cpu")
    theta, (out_features, in_features) = low_rank(model).initial_theta(), model.config.block_tensors[0].shape
    noise = torch.from_numpy(perturbation(3, (1 << 64) - 1, 0, RANK * in_features))

    first, second = theta[: RANK * in_features], theta[RANK * in_features :][: RANK * out_features]

    assert torch.equal(first, noise * (1 / (3 * in_features) ** 0.5))
    assert not second.any()
    assert theta.numel() == sum(RANK * sum(entry.shape) for entry in model.config.block_tensors)
    assert torch.equal(theta, low_rank(load_model(case_of().bundle, device="cpu")).initial_theta())


@pytest.mark.parametrize("name", ["reference", "native"])
@pytest.mark.parametrize("lengths", [(9, 4), (17, 17, 17), (50,) * 4, (70,) * 4], ids=str)
def test_points_side_by_side_give_the_bits_of_each_alone(
    case_of: Callable, kernels: Path, name: str, lengths: tuple[int, ...]
) -> None:
    tuned = low_rank(load_model(case_of().bundle, device="cpu", backend=BackendOptions(name, kernels)))
    batch, thetas = batch_of_lengths(*lengths), [random_theta(tuned, seed) for seed in range(3)]

    assert_points_keep_their_bits(tuned, batch, thetas)


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_factors_of_upper_blocks_leave_those_below_alone(case_of: Callable, model_type: str) -> None:
    case, batch = case_of(model_type), batch_of_lengths(5, 12, 7)
    part = tuned_part(case.bundle.config, "lora", "upper:1")
    models = [load_model(case.bundle, device="cpu") for _ in range(2)]
    upper = UpperBlocks(models[0], part.blocks, KeptStates(1 << 20))
    over_states, whole = low_rank(models[0], "upper:1", upper), low_rank(models[1], "upper:1")
    thetas = [random_theta(whole, seed) for seed in range(2)]

    for tuned in (over_states, whole):
        tuned.write_points(thetas)

    every = tuned_part(case.bundle.config, "lora", "all")
    assert thetas[0].numel() == over_states.initial_theta().numel() == part.value_count < every.value_count
    torch.testing.assert_close(over_states.logits(batch), whole.logits(batch), **FLOAT32_FORWARD)


@pytest.mark.parametrize("name", ["reference", "native"])
def test_a_text_is_that_of_transformers_with_the_factors_in_its_weights(
    case_of: Callable, kernels: Path, name: str
) -> None:
    case, prompt = case_of(), [9, 40, 7, 100]
    model = load_model(case.bundle, device="cpu", backend=BackendOptions(name, kernels))
    tuned = low_rank(model)
    theta = random_theta(tuned) * 2
    options = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with torch.no_grad():
        networks = (merged(case, theta), case.reference)
        texts = [network.generate(torch.tensor([prompt]), **options) for network in networks]

    tuned.write_points([theta])

    assert list(model.generate(prompt, max_new_tokens=20)) == texts[0][0, len(prompt) :].tolist()
    assert not torch.equal(*texts)
