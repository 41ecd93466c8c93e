"""Points side by side on several threads, where what a thread computes depends on how many rows there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from points_alone import assert_points_keep_their_bits, offset_points
from token_rows import batch_of

from device_client.model.loader import load_model


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize("lengths", [(9, 4), (17, 17, 17)], ids=str)
def test_points_side_by_side_on_two_threads_give_the_bits_of_each_alone(
    case_of: Callable, model_type: str, lengths: tuple[int, ...]
) -> None:
    model = load_model(case_of(model_type).bundle, device="cpu")
    batch = batch_of([list(range(4, 4 + length)) for length in lengths])

    assert_points_keep_their_bits(model, batch, offset_points(model.initial_theta()))
