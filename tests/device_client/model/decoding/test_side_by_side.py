"""Answers written side by side are those that each prompt gets alone, in every family, at every point."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from random_bundle import ARCHITECTURES, Case

from device_client.model.decoding.side_by_side import likeliest_answers
from device_client.model.kept_states import KeptStates
from device_client.model.loader import load_model
from device_client.model.sparse_model import SparseModel
from device_client.model.upper_blocks import UpperBlocks
from device_client.planning.tuned_blocks import tuned_blocks

PROMPTS = [[256, 7, 1, 200, 31, 31, 5, 90, 12], [256, 4], [256, 66, 128, 9, 31, 17]]
NEW_TOKENS = 6


def model_of(case: Case) -> SparseModel:
    return load_model(case.bundle, device="cpu", compute_dtype=torch.float32)


def points_of(model: SparseModel) -> list[torch.Tensor]:
    theta = model.initial_theta()
    z = torch.randn(theta.shape, generator=torch.Generator().manual_seed(0))
    return [theta + 0.3 * z, theta - 0.3 * z]


def generated(model: SparseModel, theta: torch.Tensor, prompt: list[int]) -> list[int]:
    model.write_theta(theta)
    return list(model.generate(prompt, max_new_tokens=NEW_TOKENS, stop_ids=model.tokenizer.eos_ids))


@pytest.mark.parametrize("model_type", sorted(set(ARCHITECTURES) - {"granite", "olmo2", "smollm3", "stablelm"}))
def test_every_family_answers_as_it_does_alone(case_of: Callable[..., Case], model_type: str) -> None:
    model = model_of(case_of(model_type))
    thetas = points_of(model)
    expected = [[generated(model, theta, prompt) for prompt in PROMPTS] for theta in thetas]
    groups = [[prompt] for prompt in PROMPTS] if model.answers_alone else [PROMPTS]

    model.write_points(thetas)
    found = [model.answers(group, NEW_TOKENS) for group in groups]

    assert [[answer for group in found for answer in group[point]] for point in (0, 1)] == expected
    assert model.answers_alone == (model_type in ("gemma2", "gemma3_text", "mistral", "phi3"))


def test_an_answer_ends_at_its_stop_token_whatever_the_other_rows_do(case_of: Callable[..., Case]) -> None:
    model = model_of(case_of("llama"))
    model.write_theta(model.initial_theta())
    (free,) = likeliest_answers(model, PROMPTS, new_tokens=NEW_TOKENS, stop_ids=[])
    answers = [answer for answer in free if answer is not None]
    stop = answers[1][2]

    (found,) = likeliest_answers(model, PROMPTS, new_tokens=NEW_TOKENS, stop_ids=[stop])

    assert found == [answer[: answer.index(stop)] if stop in answer else answer for answer in answers]


def test_an_answer_ends_where_the_context_does(case_of: Callable[..., Case]) -> None:
    model = model_of(case_of("llama"))
    model.write_theta(model.initial_theta())
    long = [256, *range(60)]
    (found,) = model.answers([long, [256, 4]], NEW_TOKENS)
    assert model.tokenizer.context_length - len(long) == 3
    assert list(map(len, found)) == [3, NEW_TOKENS]  # type: ignore[arg-type]


def test_logits_that_are_not_finite_are_no_answer(case_of: Callable[..., Case]) -> None:
    model = model_of(case_of("llama"))
    theta = model.initial_theta()
    model.write_points([theta, torch.full_like(theta, torch.nan)])
    alone, lost = model.answers(PROMPTS, NEW_TOKENS)
    assert None not in alone
    assert lost == [None, None, None]


def test_upper_blocks_answer_as_the_whole_model_with_their_values(case_of: Callable[..., Case]) -> None:
    model = model_of(case_of("llama"))
    tuned = tuned_blocks(model.config, "upper:1")
    whole = [
        torch.cat([model.initial_theta()[: tuned.first_value], theta[tuned.first_value :]])
        for theta in points_of(model)
    ]
    model.write_points(whole)
    expected = model.answers(PROMPTS, NEW_TOKENS)
    model.write_theta(model.initial_theta())
    with KeptStates(0) as kept:
        upper = UpperBlocks(model, tuned, kept)
        upper.write_points([theta[tuned.first_value :] for theta in whole])
        assert upper.answers(PROMPTS, NEW_TOKENS) == expected
    assert len(expected) == 2
