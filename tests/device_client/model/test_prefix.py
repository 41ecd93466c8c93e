"""Keys and values in front of every text: the logits of transformers behind a cache that holds them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from points_alone import assert_points_keep_their_bits
from random_bundle import Case, make_case
from token_rows import batch_of_lengths
from torch import Tensor
from transformers import DynamicCache

from device_client.model.backends.choose import BackendOptions
from device_client.model.loader import load_model
from device_client.model.methods import tuned_by
from device_client.model.sparse_model import SparseModel
from device_client.model.token_batch import TokenBatch
from device_client.model.tunable_model import TunableModel
from device_client.planning.methods import MethodName, tuned_part
from shared.architecture import FAMILIES
from shared.errors import DataError
from shared.model_dimensions import dimensions_of
from shared.perturbation import random_generator

# One float32 forward of two tiny blocks: products are added up in another order than transformers adds them.
FLOAT32_FORWARD = {"rtol": 1e-5, "atol": 2e-5}
LENGTH = 5  # appendix C.4


def prefixed(model: SparseModel) -> TunableModel:
    return tuned_by(tuned_part(model.config, "prefix", "all"), model, model, seed=3)


def random_theta(tuned: TunableModel, seed: int = 1) -> Tensor:
    theta = tuned.initial_theta()
    return theta + 0.5 * torch.randn(theta.shape, generator=torch.Generator().manual_seed(seed))


def cache_of(case: Case, theta: Tensor, rows: int) -> DynamicCache:
    """Return transformers' cache with each block's keys, then its values, cut from θ."""
    dimensions = dimensions_of(case.bundle.config.architecture)
    shape = (1, dimensions.key_heads, LENGTH, dimensions.head_width)
    parts = theta.split(LENGTH * dimensions.keys)
    assert len(parts) == 2 * dimensions.blocks
    cache = DynamicCache(config=case.reference.config)
    for block in range(dimensions.blocks):
        keys, values = (part.view(shape).repeat(rows, 1, 1, 1) for part in parts[2 * block : 2 * block + 2])
        cache.update(keys, values, block)
    return cache


def expected_logits(case: Case, theta: Tensor, batch: TokenBatch) -> Tensor:
    cache = cache_of(case, theta, len(batch.input_ids))
    with torch.no_grad():
        logits: Tensor = case.reference(batch.input_ids, past_key_values=cache, use_cache=True).logits
    return logits[batch.logit_rows, batch.logit_columns]


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_logits_equal_those_of_transformers_behind_a_cache(case_of: Callable, model_type: str) -> None:
    case, batch = case_of(model_type), batch_of_lengths(12, 12)
    tuned = prefixed(load_model(case.bundle, device="cpu"))
    theta = random_theta(tuned)
    tuned.write_points([theta])

    found = tuned.logits(batch)[0]

    torch.testing.assert_close(found, expected_logits(case, theta, batch), **FLOAT32_FORWARD)
    assert (found - load_model(case.bundle, device="cpu").logits(batch)[0]).abs().max() > 0.01


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("mistral", {"sliding_window": 6}),
        ("gemma3_text", {"num_key_value_heads": 1, "layer_types": ["sliding_attention"] * 2}),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}}),
    ],
    ids=str,
)
def test_a_window_hides_a_prefix_as_it_hides_tokens(tmp_path: Path, model_type: str, changes: dict[str, Any]) -> None:
    case, batch = make_case(tmp_path, model_type, **changes), batch_of_lengths(12, 12)
    tuned = prefixed(load_model(case.bundle, device="cpu"))
    theta = random_theta(tuned)

    tuned.write_points([theta])

    torch.testing.assert_close(tuned.logits(batch)[0], expected_logits(case, theta, batch), **FLOAT32_FORWARD)


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_a_run_begins_as_if_the_seeds_tokens_stood_in_front(case_of: Callable, model_type: str) -> None:
    case, batch = case_of(model_type), batch_of_lengths(9)
    model = load_model(case.bundle, device="cpu")
    words = random_generator(3, (1 << 64) - 1).bit_generator.random_raw(LENGTH)
    vocabulary = int(case.bundle.config.architecture["vocab_size"])
    in_front = torch.tensor([[int(word) % vocabulary for word in words]])
    with torch.no_grad():
        expected = case.reference(torch.cat([in_front, batch.input_ids], dim=1)).logits[0, LENGTH:]

    tuned = prefixed(model)
    tuned.write_points([tuned.initial_theta()])

    torch.testing.assert_close(tuned.logits(batch)[0], expected, **FLOAT32_FORWARD)


@pytest.mark.parametrize("name", ["reference", "native"])
@pytest.mark.parametrize("lengths", [(9, 4), (17, 17, 17), (50,) * 4], ids=str)
def test_points_side_by_side_give_the_bits_of_each_alone(
    case_of: Callable, kernels: Path, name: str, lengths: tuple[int, ...]
) -> None:
    tuned = prefixed(load_model(case_of().bundle, device="cpu", backend=BackendOptions(name, kernels)))
    batch, thetas = batch_of_lengths(*lengths), [random_theta(tuned, seed) for seed in range(3)]

    assert_points_keep_their_bits(tuned, batch, thetas)


def test_padding_changes_no_logit(case_of: Callable) -> None:
    tuned = prefixed(load_model(case_of().bundle, device="cpu"))
    tuned.write_points([random_theta(tuned)])
    together = tuned.logits(batch_of_lengths(12, 7))[0]
    torch.testing.assert_close(together[12:], tuned.logits(batch_of_lengths(7))[0], **FLOAT32_FORWARD)


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_a_text_is_that_of_transformers_behind_a_cache(case_of: Callable, model_type: str) -> None:
    case, prompt = case_of(model_type), [9, 40, 7, 100]
    model = load_model(case.bundle, device="cpu")
    tuned = prefixed(model)
    theta = random_theta(tuned)
    tuned.write_points([theta])
    expected: list[int] = []
    cache = cache_of(case, theta, 1)
    for _ in range(12):
        ids = torch.tensor([expected[-1:] or prompt])
        with torch.no_grad():
            logits = case.reference(ids, past_key_values=cache, use_cache=True).logits
        expected.append(int(logits[0, -1].argmax()))

    assert list(model.generate(prompt, max_new_tokens=12)) == expected


@pytest.mark.parametrize("method", ["lora", "prefix"])
def test_the_published_model_answers_without_what_a_method_adds(case_of: Callable, method: MethodName) -> None:
    batch, own = batch_of_lengths(12, 7), load_model(case_of().bundle, device="cpu")
    model = load_model(case_of().bundle, device="cpu")
    tuned = tuned_by(tuned_part(model.config, method), model, model, seed=3)
    tuned.write_points([random_theta(tuned)])

    with model.as_published():
        published = model.logits(batch)

    assert torch.equal(published, own.logits(batch))
    assert not torch.equal(published, tuned.logits(batch))


def test_a_prompt_leaves_room_for_the_prefix(case_of: Callable) -> None:
    model = load_model(case_of().bundle, device="cpu")
    context = model.tokenizer.context_length
    prefixed(model)
    with pytest.raises(DataError) as caught:
        model.generate([5] * (context - LENGTH), max_new_tokens=1)
    assert caught.value.needed == f"1 to {context - LENGTH - 1} tokens"
