"""The limits that steps and decoders are held against."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peers.bare_forward import Generation, greedy_generate, two_bare_forwards
from random_bundle import make_case
from torch import nn

from device_client.model.token_batch import TokenBatch


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    return make_case(tmp_path_factory.mktemp("bare"), "llama").reference


def test_two_bare_forwards_are_the_models_own_logits_twice(plain: nn.Module) -> None:
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 0, 0]])
    tokens = TokenBatch(ids, (ids > 0).long(), torch.tensor([0, 1]), torch.tensor([3, 1]))
    first, second = two_bare_forwards(plain, tokens)
    with torch.no_grad():
        alone = [plain(input_ids=row[None]).logits[0, -1] for row in (ids[0], ids[1, :2])]
    torch.testing.assert_close(first, torch.stack(alone), rtol=1e-4, atol=1e-5)
    assert torch.equal(first, second)
    assert not first.requires_grad


def test_generation_has_the_asked_number_of_likeliest_tokens(plain: nn.Module) -> None:
    done = greedy_generate(plain, [1, 5, 6], 12)
    ids = [1, 5, 6]
    with torch.no_grad():
        for _ in range(12):
            scores = plain(input_ids=torch.tensor([ids])).logits[0, -1]
            scores[2] = -torch.inf  # the end-of-text token is held back
            ids.append(int(scores.argmax()))
    assert done.tokens == ids[3:]
    assert done.seconds > 0


def test_generation_goes_on_where_the_text_would_end(tmp_path: Path) -> None:
    plain = make_case(tmp_path, "llama").reference
    free = greedy_generate(plain, [1, 5, 6], 1).tokens[0]
    plain.generation_config.eos_token_id = free
    assert len(greedy_generate(plain, [1, 5, 6], 7).tokens) == 7


def test_the_speed_is_tokens_over_seconds() -> None:
    assert Generation([3, 4, 5], 1.5).tokens_per_second == 2.0
