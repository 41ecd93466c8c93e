"""The published quantisers against what their papers promise, and against values worked by hand."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from exact_kmeans import least_error
from peers.four_bit_recipes import NF4, awq, nf4, squeezellm
from torch import Tensor


def random_weight(rows: int, columns: int, seed: int = 3) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.05


def test_nf4_keeps_its_own_values_where_all_groups_have_one_magnitude() -> None:
    weight = torch.tensor(NF4).repeat(5, 8) * 0.25  # 128 columns: two groups, each with a largest magnitude of 0.25
    decoded, bits = nf4(weight, doubly=True)
    torch.testing.assert_close(decoded, weight)
    plain, plain_bits = nf4(weight, doubly=False)
    torch.testing.assert_close(plain, weight)
    assert plain_bits == 4 * 640 + 16 * 10
    # 4 bits a weight, 8 bits for each of 10 scales, a float32 for their one block and one for their mean
    assert bits == 4 * 640 + 8 * 10 + 32 + 32


def test_nf4_is_off_by_at_most_half_its_widest_gap() -> None:
    weight = random_weight(32, 192)
    decoded, _ = nf4(weight, doubly=True)
    largest = weight.view(32, 3, 64).abs().amax(dim=2).repeat_interleave(64, dim=1)
    widest = max(b - a for a, b in pairwise(NF4))
    # a scale is off by at most 1/254 of the spread of scales, which is below the largest of them
    assert (decoded - weight).abs().max() <= (widest / 2 * largest).max() + 2 / 254 * largest.max()


def test_squeezellm_weighs_each_row_by_its_gradients_and_leaves_masked_weights_out() -> None:
    weight, fisher = random_weight(3, 96), random_weight(3, 96, seed=4).square()
    is_masked = torch.rand(3, 96, generator=torch.Generator().manual_seed(1)) < 0.05
    decoded, bits = squeezellm(weight, fisher, is_masked, 3)
    counted = fisher.masked_fill(is_masked, 0).double()
    errors = (counted * (decoded.double() - weight.double()) ** 2).sum(dim=1)
    for row in range(3):
        best = least_error(weight[row].double().numpy(), counted[row].numpy(), 8)
        assert best * 0.999 <= errors[row] <= best * 1.01  # the codebook is rounded to float16
    assert bits == 3 * (3 * 96 + 16 * 8)


def test_a_row_without_gradients_gets_a_codebook_all_the_same() -> None:
    weight = random_weight(2, 64)
    nowhere = torch.zeros(2, 64, dtype=torch.bool)
    decoded, _ = squeezellm(weight, torch.zeros(2, 64), nowhere, 4)
    assert (decoded - weight).square().sum() < 0.01 * weight.square().sum()


@pytest.mark.parametrize("bits", [3, 4])
def test_awq_errs_less_than_plain_rounding_where_some_inputs_are_large(bits: int) -> None:
    weight = random_weight(24, 256)
    magnitude = torch.ones(256).index_fill_(0, torch.tensor([5, 77, 200]), 30.0)
    moment = torch.diag(magnitude.square())
    decoded, size = awq(weight, moment, bits, 128)
    plain, plain_size = awq(weight, torch.eye(256), bits, 128)  # equal inputs leave nothing to scale by
    error, plain_error = (float(((w - weight).square() * magnitude.square()).sum()) for w in (decoded, plain))
    assert error < 0.6 * plain_error
    assert size == plain_size == bits * 24 * 256 + 2 * 16 * 24 * 2
