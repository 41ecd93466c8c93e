"""Decoding through a block's weights themselves gives what transformers' modules and cache give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from random_bundle import ARCHITECTURES, make_case
from torch import Tensor

from device_client.model.backends.choose import BackendOptions
from device_client.model.backends.native.amx import has_matrix_unit
from device_client.model.decoding.choose import eager_decoding
from device_client.model.decoding.decoding import Decoding
from device_client.model.decoding.direct import DirectDecoding, can_be_direct
from device_client.model.decoding.growing import GrowingDecoding
from device_client.model.loader import load_model
from device_client.model.sparse_model import SparseModel
from device_client.planning.workload import GROWTH_TOKENS

PROMPT = [7, 1, 200, 31, 31, 5, 90, 12]  # longer than the tiny mistral's window of 6
FOLLOWING = [4, 250, 4, 17, 66, 128, 9, 31, 2]
DIRECT_TYPES = ["llama", "mistral", "qwen2", "qwen3"]
IN_PANELS = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}


def loaded(
    root: Path, kernels: Path, model_type: str, dtype: torch.dtype = torch.float32, **changes: Any
) -> SparseModel:
    bundle = make_case(root, model_type, **changes).bundle
    options = BackendOptions("native", kernels, lambda _: None)
    model = load_model(bundle, device="cpu", compute_dtype=dtype, backend=options)
    model.write_theta(model.initial_theta())
    return model


def direct(model: SparseModel) -> DirectDecoding:
    network: Any = model.network
    decoding = eager_decoding(network.get_decoder(), model.head, network.config, model.runtime, fused_up_to_tokens=1)
    assert isinstance(decoding, DirectDecoding)
    return decoding


def by_modules(model: SparseModel) -> GrowingDecoding:
    network: Any = model.network
    return GrowingDecoding(network.get_decoder(), network.get_output_embeddings(), network.config, model.device)


def logits_of(decoding: Decoding, prompt: list[int], following: list[int]) -> list[Tensor]:
    return [decoding.prefill(prompt).clone(), *(decoding.step(token).clone() for token in following)]


def assert_close(found: list[Tensor], expected: list[Tensor], tolerance: float = 2e-5) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * float(theirs.abs().max()))


@pytest.mark.parametrize("form", ["per_row", "shared", "uniform"])
@pytest.mark.parametrize("model_type", DIRECT_TYPES)
def test_every_family_of_these_blocks_decodes_as_by_its_modules(
    model_type: str, form: str, tmp_path: Path, kernels: Path
) -> None:
    model = loaded(tmp_path, kernels, model_type, form=form)

    decoding = direct(model)

    assert_close(logits_of(decoding, PROMPT, FOLLOWING), logits_of(by_modules(model), PROMPT, FOLLOWING))
    assert_close(logits_of(decoding, [77], FOLLOWING[:4]), logits_of(by_modules(model), [77], FOLLOWING[:4]))


def test_a_plain_transformers_model_gives_the_same_text(tmp_path: Path, kernels: Path) -> None:
    case = make_case(tmp_path, "qwen3")
    model = load_model(case.bundle, device="cpu", backend=BackendOptions("native", kernels, lambda _: None))
    model.fused_up_to_tokens = 1
    model.write_theta(model.initial_theta())

    ours = list(model.generate(PROMPT, max_new_tokens=12))

    theirs = case.reference.generate(
        torch.tensor([PROMPT]), generation_config=transformers.GenerationConfig(max_new_tokens=12, do_sample=False)
    )
    assert ours == theirs[0, len(PROMPT) :].tolist()


@pytest.mark.parametrize("model_type", ["llama", "mistral"])
def test_buffers_grow_and_a_window_forgets(model_type: str, tmp_path: Path, kernels: Path) -> None:
    """So many tokens that keys and values move twice, and in mistral's window what nobody sees is dropped."""
    model = loaded(tmp_path, kernels, model_type, max_position_embeddings=4 * GROWTH_TOKENS)
    following = [(7 * i) % 250 for i in range(2 * GROWTH_TOKENS + 3)]

    found = logits_of(direct(model), PROMPT, following)

    assert_close(found, logits_of(by_modules(model), PROMPT, following), tolerance=1e-4)


def test_values_that_changed_since_count_in_the_next_text(tmp_path: Path, kernels: Path) -> None:
    """Overwritten in place, then moved: two points lie elsewhere than one."""
    model = loaded(tmp_path, kernels, "llama")
    theta, decoding = model.initial_theta(), direct(model)
    before = logits_of(decoding, PROMPT, FOLLOWING)

    model.write_theta(theta + 0.5)
    overwritten = logits_of(decoding, PROMPT, FOLLOWING)
    assert_close(overwritten, logits_of(by_modules(model), PROMPT, FOLLOWING))
    assert not torch.allclose(overwritten[-1], before[-1])

    model.write_points([theta, theta])
    model.write_theta(theta)
    assert_close(logits_of(decoding, PROMPT, FOLLOWING), before)


def test_a_window_keeps_no_more_than_it_shows(tmp_path: Path, kernels: Path) -> None:
    model = loaded(tmp_path, kernels, "mistral", max_position_embeddings=8 * GROWTH_TOKENS)
    decoding = direct(model)

    logits_of(decoding, PROMPT, [5] * (4 * GROWTH_TOKENS))

    assert decoding.kept_tokens <= 6 + GROWTH_TOKENS


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}}),
        ("mistral", {"sliding_window": None}),
        ("mistral", {"sliding_window": 6, "layer_types": ["full_attention"] * 2}),  # which its modules do not look at
        ("qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 0}),
        ("qwen3", {"layer_types": ["full_attention"] * 2}),
    ],
)
def test_every_configuration_of_these_blocks_decodes_as_by_its_modules(
    model_type: str, changes: dict[str, Any], tmp_path: Path, kernels: Path
) -> None:
    model = loaded(tmp_path, kernels, model_type, **changes)

    found = logits_of(direct(model), PROMPT, FOLLOWING)

    assert_close(found, logits_of(by_modules(model), PROMPT, FOLLOWING))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 5e-3), (torch.bfloat16, 3e-2)])
def test_other_formats_decode_as_by_the_modules(
    dtype: torch.dtype, tolerance: float, tmp_path: Path, kernels: Path
) -> None:
    """Weights of these sizes lie in no panels."""
    model = loaded(tmp_path, kernels, "qwen3", dtype)

    with model.runtime.fusing(1):
        found = logits_of(direct(model), PROMPT, FOLLOWING)
        expected = logits_of(by_modules(model), PROMPT, FOLLOWING)

    assert_close(found, expected, tolerance)


def test_a_step_needs_a_prompt_and_one_point(tmp_path: Path, kernels: Path) -> None:
    model = loaded(tmp_path, kernels, "llama")
    decoding = direct(model)
    with pytest.raises(ValueError, match="a step after 0 tokens at 1 points; needed a prompt, and one point"):
        decoding.step(1)

    decoding.prefill(PROMPT)
    model.write_points([model.initial_theta()] * 2)
    with pytest.raises(ValueError, match="a step after 8 tokens at 2 points"):
        decoding.step(1)

    model.write_theta(model.initial_theta())
    with pytest.raises(IndexError):
        decoding.prefill([100000])
    with pytest.raises(ValueError, match="a step after 0 tokens"):  # the text before is gone, and no other one there
        decoding.step(1)


@pytest.mark.skipif(not has_matrix_unit(), reason="needs a CPU with a matrix unit (AMX)")
@pytest.mark.parametrize("model_type", DIRECT_TYPES)
def test_the_matrix_unit_decodes_in_bfloat16_as_the_modules_do(model_type: str, tmp_path: Path, kernels: Path) -> None:
    model = loaded(tmp_path, kernels, model_type, torch.bfloat16, **IN_PANELS, head_dim=32)
    assert model.products == "matrix unit"

    with model.runtime.fusing(1):
        found = logits_of(direct(model), PROMPT, FOLLOWING)
        expected = logits_of(by_modules(model), PROMPT, FOLLOWING)

    assert_close(found, expected, tolerance=3e-2)  # attention rounds at its end alone


@pytest.mark.parametrize("model_type", sorted(set(ARCHITECTURES) - set(DIRECT_TYPES)))
def test_every_family_of_other_blocks_goes_by_its_modules(model_type: str, tmp_path: Path, kernels: Path) -> None:
    network: Any = loaded(tmp_path, kernels, model_type).network
    assert not can_be_direct(network.get_decoder(), network.config)


def test_unpacked_blocks_and_frequencies_that_depend_on_the_length_go_by_modules(tmp_path: Path, kernels: Path) -> None:
    llama = loaded(tmp_path / "llama", kernels, "llama")
    plain: Any = make_case(tmp_path / "plain", "llama").reference

    assert not can_be_direct(plain.get_decoder(), plain.config)  # nothing is packed
    network: Any = llama.network
    network.config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 1e4}
    assert not can_be_direct(network.get_decoder(), network.config)


def test_where_the_fused_product_does_not_pay_modules_decode(tmp_path: Path, kernels: Path) -> None:
    model = loaded(tmp_path, kernels, "llama")
    network: Any = model.network

    decoding = eager_decoding(
        network.get_decoder(), network.get_output_embeddings(), network.config, model.runtime, fused_up_to_tokens=0
    )

    assert isinstance(decoding, GrowingDecoding)
