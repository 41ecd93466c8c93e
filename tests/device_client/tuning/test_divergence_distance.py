"""Values that run away are called divergence even where the loss cannot grow."""

from __future__ import annotations

import pytest
import torch

from device_client.tuning.divergence import FARTHEST, DivergenceWatch
from shared.errors import Diverged

START = torch.tensor([3.0, 4.0])  # of length 5


def test_values_ten_of_their_lengths_away_have_diverged():
    watch = DivergenceWatch(0.7, START)
    watch.check_distance(START + torch.tensor([5.0 * FARTHEST, 0.0]), 10)
    with pytest.raises(Diverged, match=r"10\.2 times their own length") as caught:
        watch.check_distance(START + torch.tensor([51.0, 0.0]), 20)
    assert caught.value.exit_code == 10


def test_values_that_begin_at_zero_have_no_length_to_compare_with():
    DivergenceWatch(0.7, torch.zeros(2)).check_distance(torch.ones(2), 1)
