"""Decoding over fixed buffers gives what a growing cache gives, also where only the trace of one step is replayed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from random_bundle import ARCHITECTURES, make_case
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from device_client.model.decoding.attention import steps_are_alike
from device_client.model.decoding.static import StaticDecoding, Step, capacity_for
from device_client.model.output_head import OutputHead
from shared.architecture import FAMILIES

PROMPT = [7, 1, 200, 31, 31, 5, 90, 12]  # longer than the tiny mistral's window of 6
FOLLOWING = [4, 250, 4, 17, 66, 128, 9, 31, 2]
ALIKE = sorted(set(ARCHITECTURES) - {"gemma2", "gemma3_text", "phi3"})
"""Gemma's layers are of two kinds, and Phi-3's rotary frequencies depend on the length."""


def traced(step: Step) -> Step:
    """Replay the tensor operations of one call, as a CUDA graph does: whatever Python decided is decided for good."""
    nothing = torch.empty(0)
    operations: Callable[[Tensor], Tensor] = make_fx(lambda _: step())(nothing)
    return lambda: operations(nothing)


def decoding_of(model: transformers.PreTrainedModel, capacity: int = 64, **options: object) -> StaticDecoding:
    parameter = next(model.parameters())
    return StaticDecoding(
        model.get_decoder(),
        OutputHead.of(model, FAMILIES[model.config.model_type]),
        model.config,
        capacity,
        parameter.device,
        parameter.dtype,
        **options,  # type: ignore[arg-type]
    )


@torch.no_grad()
def with_growing_cache(model: transformers.PreTrainedModel, prompt: list[int], following: list[int]) -> list[Tensor]:
    cache = transformers.DynamicCache(config=model.config)
    parts = [prompt, *([token] for token in following)]
    device = next(model.parameters()).device
    return [model(torch.tensor([part], device=device), past_key_values=cache).logits[0, -1].float() for part in parts]


def with_fixed_buffers(decoding: StaticDecoding, prompt: list[int], following: list[int]) -> list[Tensor]:
    return [decoding.prefill(prompt), *(decoding.step(token).clone() for token in following)]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for ours, theirs in zip(found, expected, strict=True):  # attention over masked columns adds in another order
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("capture", [None, traced])
@pytest.mark.parametrize("model_type", ALIKE)
def test_every_family_decodes_as_with_a_growing_cache(
    model_type: str, capture: Callable[[Step], Step] | None, tmp_path: Path
) -> None:
    model = make_case(tmp_path, model_type).reference
    decoding = decoding_of(model, capture=capture)
    assert steps_are_alike(model.config)

    assert_same(with_fixed_buffers(decoding, PROMPT, FOLLOWING), with_growing_cache(model, PROMPT, FOLLOWING))
    # another text in the same buffers, where the first one's keys still lie behind it
    assert_same(with_fixed_buffers(decoding, [77], FOLLOWING[:4]), with_growing_cache(model, [77], FOLLOWING[:4]))


def test_a_text_may_fill_the_buffers_to_the_last_token(tmp_path: Path) -> None:
    model = make_case(tmp_path, "mistral").reference
    decoding = decoding_of(model, capacity=len(PROMPT) + len(FOLLOWING))

    assert_same(with_fixed_buffers(decoding, PROMPT, FOLLOWING), with_growing_cache(model, PROMPT, FOLLOWING))
    with pytest.raises(ValueError, match="a step after 17 tokens; needed 1 to 16"):
        decoding.step(1)


def test_weights_that_are_overwritten_count_in_the_next_step(tmp_path: Path) -> None:
    model = make_case(tmp_path, "llama").reference
    decoding = decoding_of(model, capture=traced)
    before = with_fixed_buffers(decoding, PROMPT, [4])[1]

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)

    after = with_fixed_buffers(decoding, PROMPT, [4])
    assert_same(after, with_growing_cache(model, PROMPT, [4]))
    assert not torch.allclose(after[1], before)


@pytest.mark.parametrize("prompt", [[], [1] * 65])
def test_a_prompt_that_does_not_fit_is_refused(prompt: list[int], tmp_path: Path) -> None:
    decoding = decoding_of(make_case(tmp_path, "llama").reference)

    with pytest.raises(ValueError, match=f"a prompt of {len(prompt)} tokens; needed 1 to 64"):
        decoding.prefill(prompt)


def test_a_step_needs_a_prompt(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a step after 0 tokens"):
        decoding_of(make_case(tmp_path, "llama").reference).step(1)


@pytest.mark.parametrize(
    ("config", "is_supported"),
    [
        ({}, True),
        ({"rope_parameters": {"rope_type": "llama3"}}, True),
        ({"rope_parameters": {"rope_type": "dynamic"}}, False),
        ({"rope_parameters": {"rope_type": "longrope"}}, False),
        ({"rope_parameters": {"full_attention": {"rope_type": "dynamic"}, "sliding_attention": {}}}, False),
        ({"layer_types": ["sliding_attention", "sliding_attention"], "sliding_window": 8}, True),
        ({"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}, False),
        ({"layer_types": ["sliding_attention", "full_attention"], "model_type": "mistral"}, True),
    ],
)
def test_what_depends_on_the_length_or_the_layer_is_not_supported(
    config: dict[str, object], is_supported: bool
) -> None:
    assert steps_are_alike(SimpleNamespace(**config)) is is_supported


def test_capacities_are_multiples_of_64() -> None:
    assert [capacity_for(count) for count in (1, 64, 65, 300)] == [64, 64, 128, 320]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("model_type", ALIKE)
def test_on_a_gpu_a_replayed_graph_decodes_as_with_a_growing_cache(model_type: str, tmp_path: Path) -> None:
    model = make_case(tmp_path, model_type).reference.to("cuda")
    decoding = decoding_of(model)

    found = with_fixed_buffers(decoding, PROMPT, FOLLOWING)
    again = with_fixed_buffers(decoding, PROMPT, FOLLOWING)

    for ours, theirs in zip(found, with_growing_cache(model, PROMPT, FOLLOWING), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    assert all(map(torch.equal, found, again))
