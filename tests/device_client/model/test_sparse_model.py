"""The loaded model against plain transformers, and the laws of θ, padding, batching and repetition."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import token_rows
import torch
from points_alone import assert_points_keep_their_bits, offset_points
from random_bundle import make_case
from torch import Tensor, nn

from device_client.model.backends.library_product import multiply_decoded
from device_client.model.backends.weight import EVERY_ROW, Weight
from device_client.model.linear import QuantizedSparseLinear, SensitiveValues
from device_client.model.loader import load_model
from device_client.model.sparse_model import SparseModel
from device_client.model.token_batch import TokenBatch
from shared.errors import DataError

# One float32 forward of two tiny blocks: the head multiplies gathered rows instead of all, in another summation order.
FLOAT32_FORWARD = {"rtol": 1e-5, "atol": 1e-5}


batch_of = partial(token_rows.batch_of, padding=258)


def random_rows(*lengths: int) -> list[list[int]]:
    generator = np.random.default_rng(5)
    return [generator.integers(0, 256, length).tolist() for length in lengths]


def quantised_layers(model: SparseModel) -> dict[str, QuantizedSparseLinear]:
    return {name: m for name, m in model.network.named_modules() if isinstance(m, QuantizedSparseLinear)}


def effective_weights(model: SparseModel) -> dict[str, Tensor]:
    return {f"{name}.weight": layer.effective_weight().clone() for name, layer in quantised_layers(model).items()}


@pytest.fixture
def model(case_of: Callable) -> SparseModel:
    return load_model(case_of().bundle, device="cpu")


@pytest.mark.parametrize("form", ["per_row", "shared", "uniform"])
@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3", "opt"])
def test_logits_equal_a_plain_model_with_the_effective_weights(case_of: Callable, model_type: str, form: str) -> None:
    case = case_of(model_type, form)
    batch = batch_of(random_rows(12, 12))
    with torch.no_grad():
        expected = case.reference(batch.input_ids).logits[batch.logit_rows, batch.logit_columns]

    logits = load_model(case.bundle, device="cpu").logits(batch)[0]

    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected, **FLOAT32_FORWARD)


@pytest.mark.parametrize("model_type", ["llama", "mistral", "opt"])
def test_padded_rows_equal_a_plain_model_that_masks_the_padding(case_of: Callable, model_type: str) -> None:
    case = case_of(model_type)
    batch = batch_of(random_rows(3, 11, 7))
    with torch.no_grad():
        full = case.reference(batch.input_ids, attention_mask=batch.attention_mask).logits

    logits = load_model(case.bundle, device="cpu").logits(batch)[0]

    torch.testing.assert_close(logits, full[batch.logit_rows, batch.logit_columns], **FLOAT32_FORWARD)


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_other_bit_widths_compute_the_same_function(case_of: Callable, bits: int) -> None:
    case = case_of("llama", "per_row", bits=bits)
    batch = batch_of(random_rows(9))
    with torch.no_grad():
        expected = case.reference(batch.input_ids).logits[0]

    torch.testing.assert_close(load_model(case.bundle, device="cpu").logits(batch)[0], expected, **FLOAT32_FORWARD)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
            "rope_theta": 500000.0,
        },
    ],
)
def test_rotary_frequencies_are_rebuilt_for_scaled_contexts(tmp_path: Path, rope: dict[str, Any]) -> None:
    case = make_case(tmp_path, "llama", rope_parameters=rope)
    batch = batch_of(random_rows(40))
    with torch.no_grad():
        expected = case.reference(batch.input_ids).logits[0]

    torch.testing.assert_close(load_model(case.bundle, device="cpu").logits(batch)[0], expected, **FLOAT32_FORWARD)


def test_effective_weights_are_exactly_the_decoded_ones_with_the_sensitive_values(case_of: Callable) -> None:
    case = case_of("llama", "uniform")

    weights = effective_weights(load_model(case.bundle, device="cpu"))

    assert sorted(weights) == sorted(entry.name for entry in case.bundle.config.tensors)
    for name, weight in weights.items():
        assert torch.equal(weight, case.reference.get_parameter(name)), name


def test_written_theta_replaces_exactly_the_sensitive_weights(case_of: Callable, model: SparseModel) -> None:
    before = effective_weights(model)
    theta = torch.arange(model.sensitive_count, dtype=torch.float32) / 7

    model.write_theta(theta)

    for name, weight in effective_weights(model).items():
        indices = torch.from_numpy(case_of().bundle.sensitive(name)[0].indices.astype(np.int64))
        expected = before[name].clone()
        expected.view(-1)[indices] = theta[model.tensor_slices[name]]
        assert torch.equal(weight, expected), name


def test_theta_can_be_written_twice_and_taken_back_without_a_trace(model: SparseModel) -> None:
    batch = batch_of(random_rows(8, 8))
    theta = model.initial_theta()
    original = model.logits(batch)[0]

    model.write_theta(theta + 0.01)
    once = model.logits(batch)[0]
    model.write_theta(theta + 0.01)
    twice = model.logits(batch)[0]
    model.write_theta(theta)

    assert torch.equal(once, twice)
    assert not torch.equal(once, original)
    assert torch.equal(model.logits(batch)[0], original)


@pytest.mark.parametrize("cache_bytes", [3000, 1 << 30])
def test_kept_decoded_weights_change_no_bit(case_of: Callable, model: SparseModel, cache_bytes: int) -> None:
    cached = load_model(case_of().bundle, device="cpu")
    cached.keep_decoded(cache_bytes)
    batch = batch_of(random_rows(9, 4))

    for offset in (0.0, 0.5, -0.5, 0.0):
        model.write_theta(model.initial_theta() + offset)
        cached.write_theta(cached.initial_theta() + offset)
        assert torch.equal(cached.logits(batch)[0], model.logits(batch)[0])


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3", "opt"])
@pytest.mark.parametrize("lengths", [(9, 4), (17, 17, 17), (1,), (50,) * 4, (60,) * 5])
def test_points_side_by_side_give_the_bits_of_each_alone(
    case_of: Callable, model_type: str, lengths: tuple[int, ...]
) -> None:
    model = load_model(case_of(model_type).bundle, device="cpu")
    batch = batch_of(random_rows(*lengths))

    assert_points_keep_their_bits(model, batch, offset_points(model.initial_theta()))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3", "opt"])
def test_on_a_gpu_points_side_by_side_give_the_bits_of_each_alone(case_of: Callable, model_type: str) -> None:
    model = load_model(case_of(model_type).bundle, device="cuda")
    cpu_batch = batch_of(random_rows(9, 4, 17, 1, 50))
    batch = TokenBatch(
        cpu_batch.input_ids.cuda(), cpu_batch.attention_mask.cuda(), cpu_batch.logit_rows.cuda(),
        cpu_batch.logit_columns.cuda(),
    )  # fmt: skip

    assert_points_keep_their_bits(model, batch, offset_points(model.initial_theta()))


def test_points_decode_each_weight_once(case_of: Callable) -> None:
    model = load_model(case_of().bundle, device="cpu")
    layers = quantised_layers(model)
    decoded = []

    class Counting:
        def __init__(self, weight: Weight) -> None:
            self._weight = weight

        def __getattr__(self, name: str) -> Any:
            return getattr(self._weight, name)

        def decode(self, values: Tensor | None = None, rows: slice = EVERY_ROW) -> Tensor:
            decoded.append(id(self))
            return self._weight.decode(values, rows)

        def multiply(self, stacked: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
            return multiply_decoded(self, stacked, values, bias)

    for layer in layers.values():
        layer.packed = Counting(layer.packed)
    model.write_points([model.initial_theta()] * 4)

    model.logits(batch_of(random_rows(5)))

    assert sorted(decoded) == sorted(id(layer.packed) for layer in layers.values())


def test_initial_theta_is_a_copy_of_the_bundles_values(case_of: Callable, model: SparseModel) -> None:
    theta = model.initial_theta()
    theta += 1

    for name, where in model.tensor_slices.items():
        expected = torch.from_numpy(case_of().bundle.sensitive(name)[1]).float()
        assert torch.equal(model.initial_theta()[where], expected)


def test_slices_follow_each_other_in_the_order_of_the_configuration(case_of: Callable, model: SparseModel) -> None:
    entries = case_of().bundle.config.tensors
    assert list(model.tensor_slices) == [entry.name for entry in entries]
    assert [where.start for where in model.tensor_slices.values()] == [6 * i for i in range(len(entries))]
    assert model.sensitive_count == 6 * len(entries)


@pytest.mark.parametrize("theta", [torch.zeros(3), torch.zeros(84, dtype=torch.float64)])
def test_theta_of_another_shape_or_dtype_is_refused(model: SparseModel, theta: Tensor) -> None:
    assert model.sensitive_count == 84
    with pytest.raises(ValueError, match="needed float32"):
        model.write_theta(theta)


def test_codes_at_masked_positions_do_not_matter(case_of: Callable) -> None:
    batch = batch_of(random_rows(10))
    low, high = (load_model(case_of("llama", masked_code=code).bundle, device="cpu") for code in (0, 15))

    assert torch.equal(low.logits(batch)[0], high.logits(batch)[0])


def test_a_bundle_without_sensitive_values_still_runs(case_of: Callable) -> None:
    case = case_of("llama", sensitive=0)
    model = load_model(case.bundle, device="cpu")

    model.write_theta(model.initial_theta())

    assert model.sensitive_count == 0
    batch = batch_of(random_rows(6))
    torch.testing.assert_close(model.logits(batch)[0], case.reference(batch.input_ids).logits[0], **FLOAT32_FORWARD)


def test_the_same_inputs_give_the_same_bits(model: SparseModel) -> None:
    batch = batch_of(random_rows(20, 13, 17))

    assert torch.equal(model.logits(batch)[0], model.logits(batch)[0])


@pytest.mark.parametrize("model_type", ["llama", "mistral", "opt"])
def test_rows_of_a_batch_agree_with_single_rows(case_of: Callable, model_type: str) -> None:
    model = load_model(case_of(model_type).bundle, device="cpu")
    rows = random_rows(4, 19, 11)

    together = model.logits(batch_of(rows))[0]

    apart = torch.cat([model.logits(batch_of([row]))[0] for row in rows])
    torch.testing.assert_close(together, apart, **FLOAT32_FORWARD)


def test_padding_tokens_and_their_number_do_not_change_logits(model: SparseModel) -> None:
    rows = random_rows(5, 9)

    plain = model.logits(batch_of(rows))[0]

    assert torch.equal(plain, model.logits(batch_of(rows, padding=17))[0])
    torch.testing.assert_close(model.logits(batch_of(rows, extra_columns=7))[0], plain, **FLOAT32_FORWARD)


def test_logits_come_only_for_the_wanted_positions_in_their_order(model: SparseModel) -> None:
    rows = random_rows(6, 6)
    every = model.logits(batch_of(rows))[0].view(2, 6, -1)
    whole = batch_of(rows)

    some = model.logits(
        TokenBatch(whole.input_ids, whole.attention_mask, torch.tensor([1, 0, 1]), torch.tensor([5, 2, 0]))
    )[0]

    torch.testing.assert_close(some, torch.stack([every[1, 5], every[0, 2], every[1, 0]]), **FLOAT32_FORWARD)


def test_logits_carry_no_autograd(model: SparseModel) -> None:
    assert not model.logits(batch_of(random_rows(4))).requires_grad
    assert not any(parameter.requires_grad for parameter in model.network.parameters())


def test_no_quantised_weight_exists_unpacked_after_loading(case_of: Callable, model: SparseModel) -> None:
    layers = quantised_layers(model)
    assert {f"{name}.weight" for name in layers} == {entry.name for entry in case_of().bundle.config.tensors}
    for name, layer in layers.items():
        assert list(layer.parameters()) == [], name
        assert layer.packed.quantized.codes.dtype == torch.uint8
    assert not any(isinstance(module, nn.Linear) for module in model.network.get_submodule("model").modules())
    assert not any(tensor.is_meta for tensor in model.network.state_dict().values())


def test_tied_embeddings_share_one_tensor(model: SparseModel) -> None:
    embedding = model.network.get_parameter("model.embed_tokens.weight")
    assert model.network.get_parameter("lm_head.weight") is embedding


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen3", "opt"])
def test_generation_with_a_cache_equals_recomputing_everything(case_of: Callable, model_type: str) -> None:
    model = load_model(case_of(model_type).bundle, device="cpu")
    prompt = random_rows(5)[0]
    expected = list(prompt)
    for _ in range(12):
        last = TokenBatch(
            torch.tensor([expected]), torch.ones(1, len(expected)), torch.tensor([0]), torch.tensor([len(expected) - 1])
        )
        expected.append(int(model.logits(last).argmax()))

    assert list(model.generate(prompt, max_new_tokens=12)) == expected[5:]


def test_generation_stops_before_a_stop_token(model: SparseModel) -> None:
    tokens = list(model.generate([256, 5], max_new_tokens=8))
    stop = tokens[3]

    assert list(model.generate([256, 5], max_new_tokens=8, stop_ids=[stop])) == tokens[: tokens.index(stop)]


def test_generation_ends_where_the_context_is_full(model: SparseModel) -> None:
    assert len(list(model.generate(random_rows(60)[0], max_new_tokens=50))) == 4


@pytest.mark.parametrize("length", [0, 64])
def test_a_prompt_that_leaves_no_room_is_refused(model: SparseModel, length: int) -> None:
    with pytest.raises(DataError, match=f"a prompt of {length} tokens"):
        model.generate([7] * length, max_new_tokens=1)


def test_a_sample_repeats_with_its_generator_and_differs_with_another(model: SparseModel) -> None:
    def sample(seed: int) -> list[int]:
        generator = np.random.default_rng(seed)
        return list(model.generate([256], max_new_tokens=20, temperature=1.5, generator=generator))

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


def test_sampling_without_a_generator_is_refused(model: SparseModel) -> None:
    with pytest.raises(ValueError, match="generator"):
        model.generate([256], max_new_tokens=1, temperature=0.5)


def test_loading_and_running_touch_no_global_state(case_of: Callable) -> None:
    state, dtype = torch.get_rng_state(), torch.get_default_dtype()
    numpy_state = np.random.get_state()[1].copy()

    model = load_model(case_of("qwen2").bundle, device="cpu")
    list(model.generate([256], max_new_tokens=3, temperature=1.0, generator=np.random.default_rng(0)))

    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_default_dtype() == dtype
    assert np.array_equal(np.random.get_state()[1], numpy_state)


def test_the_meter_reads_at_least_the_models_own_bytes(model: SparseModel) -> None:
    reading = model.memory.read()

    assert reading.accelerator_peak_bytes is None
    assert reading.process_peak_bytes >= reading.process_bytes > 1 << 20
    assert model.memory.peak_bytes == model.memory.read().process_peak_bytes


def test_values_of_any_number_are_written_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("device_client.model.points._VALUES_IN_CACHE", 4)
    thetas = [torch.randn(11), torch.randn(11)]
    values = SensitiveValues(torch.zeros(11, dtype=torch.bfloat16))

    values.write(thetas)

    for point, theta in enumerate(thetas):
        assert torch.equal(values.of(slice(None), point), theta.bfloat16())
