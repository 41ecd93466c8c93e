"""The gradient through packed weights against autograd through a plain network that holds the same weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from random_bundle import Case
from torch import Tensor, nn

from device_client.model.backends.choose import BackendOptions
from device_client.model.linear import QuantizedSparseLinear
from device_client.model.loader import load_model
from device_client.model.sparse_model import SparseModel
from device_client.model.token_batch import TokenBatch
from device_client.planning.tuned_blocks import tuned_blocks
from device_client.tasks.layout import AnswerBatch, lay_out
from device_client.tasks.scoring import Objective, answer_losses, answer_scores
from device_client.tuning.answer_gradient import AnswerGradient
from device_client.tuning.spsa import estimate
from shared.architecture import FAMILIES
from shared.perturbation import perturbation
from shared.tasks.examples import Example

# A forward and a backward pass in float32 whose sums run in another order: some 1e-7 of the largest entry a product.
FLOAT32_BACKWARD = 1e-5

ONE_TOKEN = [
    Example((3, 4, 5, 6, 7, 8), ((9,), (10,)), 0, "a"),
    Example((13, 4, 5), ((9,), (11,)), 1, "b"),
    Example((23, 24, 25, 26), ((9,), (11,), (12,)), 2, "c"),
]
SEVERAL_TOKENS = [
    Example((3, 4, 5, 6), ((9, 10), (11,)), 0, "a"),
    Example((3, 4), ((9,), (12, 13, 14)), 1, "b"),
    Example((7, 4, 3, 2, 1), ((9, 3), (12, 13, 14, 15)), 1, "c"),
]


class Plain:
    """A transformers network as a model to score with."""

    device = torch.device("cpu")

    def __init__(self, network: nn.Module) -> None:
        self._network = network

    def logits(self, batch: TokenBatch) -> Tensor:
        all_logits = self._network(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        return all_logits[batch.logit_rows, batch.logit_columns][None]


def by_autograd(case: Case, model: SparseModel, batch: AnswerBatch, objective: Objective) -> tuple[float, Tensor]:
    """Differentiate the plain network's dense weights, and pick the sensitive places."""
    network = case.reference.requires_grad_(True)
    network.zero_grad()
    loss = answer_losses(answer_scores(Plain(network), batch), batch, objective).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    is_transposed = FAMILIES[model.config.architecture["model_type"]].stores_transposed
    found = torch.zeros(model.sensitive_count)
    for name, where in model.tensor_slices.items():
        dense = network.get_parameter(name).grad
        layer = model.network.get_submodule(name.removesuffix(".weight"))
        assert isinstance(layer, QuantizedSparseLinear)
        dense = dense.T if is_transposed else dense
        found[where] = dense.flatten()[layer.packed.positions.long()]
    return loss.item(), found


def assert_equal(found: tuple[float, Tensor], expected: tuple[float, Tensor]) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    assert float((found[1] - expected[1]).norm()) < FLOAT32_BACKWARD * float(expected[1].norm())
    assert float(expected[1].norm()) > 0.01


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
@pytest.mark.parametrize(
    ("examples", "objective"),
    [(ONE_TOKEN, "candidates"), (SEVERAL_TOKENS, "candidates"), (SEVERAL_TOKENS, "vocabulary")],
    ids=["one-token", "several-tokens", "vocabulary"],
)
def test_every_family_has_the_gradient_of_its_plain_network(
    case_of: Callable, model_type: str, examples: list[Example], objective: Objective
) -> None:
    case = case_of(model_type)
    model = load_model(case.bundle, device="cpu")
    batch = lay_out(examples, micro_batch_rows=8, right_only=objective == "vocabulary")

    found = AnswerGradient(model, objective)(model.initial_theta(), batch)

    assert_equal(found, by_autograd(case, model, batch, objective))


@pytest.mark.parametrize(
    "options",
    [{"form": "uniform"}, {"form": "shared"}, {"embedding_bits": 8}, {"attention_bias": True, "mlp_bias": True}],
    ids=str,
)
def test_every_form_of_a_weight_has_the_gradient_of_the_plain_one(case_of: Callable, options: dict[str, Any]) -> None:
    case = case_of("llama", **options)
    model = load_model(case.bundle, device="cpu")
    batch = lay_out(ONE_TOKEN, micro_batch_rows=8)

    found = AnswerGradient(model, "candidates")(model.initial_theta(), batch)

    assert_equal(found, by_autograd(case, model, batch, "candidates"))


def test_the_native_backend_has_the_gradient_of_the_plain_network(case_of: Callable, kernels: Any) -> None:
    case = case_of("llama")
    model = load_model(case.bundle, device="cpu", backend=BackendOptions("native", kernels))
    model.keep_decoded(1 << 13)
    batch = lay_out(ONE_TOKEN, micro_batch_rows=8)

    found = AnswerGradient(model, "candidates")(model.initial_theta(), batch)

    assert_equal(found, by_autograd(case, model, batch, "candidates"))


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize(
    ("examples", "objective"),
    [(ONE_TOKEN, "candidates"), (SEVERAL_TOKENS, "candidates"), (SEVERAL_TOKENS, "vocabulary")],
    ids=["one-token", "several-tokens", "vocabulary"],
)
def test_micro_batches_add_up(case_of: Callable, rows: int, examples: list[Example], objective: Objective) -> None:
    model = load_model(case_of().bundle, device="cpu")
    gradient = AnswerGradient(model, objective)
    whole, cut = (
        gradient(model.initial_theta(), lay_out(examples, micro_batch_rows=count, right_only=objective == "vocabulary"))
        for count in (16, rows)
    )
    assert_equal(cut, whole)


def test_it_is_what_central_differences_of_the_loss_say(case_of: Callable) -> None:
    """Float32 losses of size one carry 1e-7; at a step of 1e-2 a difference then carries 1e-5, and the cube term."""
    model = load_model(case_of().bundle, device="cpu")
    batch, theta = lay_out(ONE_TOKEN, micro_batch_rows=8), model.initial_theta()
    _, gradient = AnswerGradient(model, "candidates")(theta, batch)
    for place in gradient.abs().topk(5).indices.tolist():
        ends = []
        for sign in (1, -1):
            moved = theta.clone()
            moved[place] += sign * 1e-2
            model.write_theta(moved)
            ends.append(float(answer_losses(answer_scores(model, batch), batch, "candidates").mean()))
        assert (ends[0] - ends[1]) / 2e-2 == pytest.approx(float(gradient[place]), rel=0.01, abs=1e-4)


def test_projected_gradients_of_forward_passes_are_its_products_with_their_directions(case_of: Callable) -> None:
    """SPSA's g of a direction z is ∇L · z, so E[g·z] = ∇L."""
    model = load_model(case_of().bundle, device="cpu")
    batch, theta = lay_out(ONE_TOKEN, micro_batch_rows=8), model.initial_theta()
    _, gradient = AnswerGradient(model, "candidates")(theta, batch)
    directions = [torch.from_numpy(perturbation(7, step, 0, len(theta))) for step in range(8)]

    def losses(thetas: Any, of: AnswerBatch) -> Tensor:
        found = []
        for point in thetas:
            model.write_points([point])
            found.append(answer_losses(answer_scores(model, of), of, "candidates"))
        return torch.stack(found).view(len(found), -1).double()

    estimates = estimate(losses, theta, directions, 1e-3, batch)

    for z, found in zip(directions, estimates, strict=True):
        assert found.projected_gradient == pytest.approx(float(gradient @ z), rel=0.02, abs=2e-3)


def test_the_model_computes_after_it_what_it_computed_before(case_of: Callable) -> None:
    model = load_model(case_of("llama", embedding_bits=8).bundle, device="cpu")
    batch = lay_out(SEVERAL_TOKENS, micro_batch_rows=8)
    before = model.logits(batch.buckets[0].tokens)

    AnswerGradient(model, "candidates")(model.initial_theta(), batch)

    assert torch.equal(model.logits(batch.buckets[0].tokens), before)
    assert not any("forward" in vars(module) for module in model.network.modules())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_gives_nearly_the_same_gradient(case_of: Callable, dtype: torch.dtype) -> None:
    batch = lay_out(ONE_TOKEN, micro_batch_rows=8)
    exact, rounded = (
        AnswerGradient(model, "candidates")(model.initial_theta(), batch)[1]
        for model in (load_model(case_of().bundle, device="cpu", compute_dtype=of) for of in (torch.float32, dtype))
    )
    # bfloat16 keeps 8 bits; what a few layers round adds up to some hundredths
    assert float((rounded - exact).norm()) < 0.1 * float(exact.norm())
    assert rounded.dtype == torch.float32


def test_blocks_below_the_first_tuned_one_run_once_and_those_above_twice(case_of: Callable) -> None:
    model = load_model(case_of().bundle, device="cpu")
    batch = lay_out(ONE_TOKEN, micro_batch_rows=8)
    _, of_all = AnswerGradient(model, "candidates")(model.initial_theta(), batch)
    upper = model.tensor_slices["model.layers.1.self_attn.q_proj.weight"].start
    runs = [0, 0]
    for index in (0, 1):
        norm = model.network.get_submodule(f"model.layers.{index}.input_layernorm")
        norm.register_forward_hook(lambda *_, index=index: runs.__setitem__(index, runs[index] + 1))

    last = tuned_blocks(model.config, "upper:1")
    _, of_upper = AnswerGradient(model, "candidates", last)(model.initial_theta()[upper:], batch)

    assert runs == [1, 2]
    assert torch.equal(of_upper, of_all[upper:])
    assert of_all[:upper].any()
