"""Which blocks are tuned, which part of θ that is, and what a step over them costs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from device_client.planning.step_cost import step_cost
from device_client.planning.tuned_blocks import TunedBlocks, check_blocks, tuned_blocks
from device_client.planning.workload import Workload
from shared.bundle.config import BundleConfig
from shared.errors import InvalidRequest, UnsupportedModel


@pytest.fixture(scope="module")
def config(case_of: Callable) -> BundleConfig:
    """Four blocks of seven weights with six sensitive values each."""
    found: BundleConfig = case_of(num_hidden_layers=4).bundle.config
    return found


@pytest.mark.parametrize(
    ("text", "expected", "name"),
    [
        ("all", TunedBlocks(0, 4, 0, 168), "all"),
        ("upper:1", TunedBlocks(3, 4, 126, 42), "upper:1"),
        ("upper:3", TunedBlocks(1, 4, 42, 126), "upper:3"),
        ("upper:4", TunedBlocks(0, 4, 0, 168), "all"),
        ("auto", TunedBlocks(2, 4, 84, 84), "upper:2"),  # a third of four, rounded up
    ],
)
def test_upper_blocks_are_the_tail_of_theta(config: BundleConfig, text: str, expected: TunedBlocks, name: str) -> None:
    assert tuned_blocks(config, text) == expected
    assert expected.name == name


@pytest.mark.parametrize(
    "text", ["", "upper", "upper:", "upper:0", "upper:-1", "upper:٣", "lower:2", "upper:" + "9" * 5000]
)
def test_what_names_no_blocks_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="--blocks") as caught:
        check_blocks(text)
    assert "upper:N" in caught.value.needed


def test_more_blocks_than_there_are_are_refused_by_their_number(config: BundleConfig) -> None:
    with pytest.raises(InvalidRequest, match="has 4 blocks") as caught:
        tuned_blocks(config, "upper:5")
    assert "upper:1 to upper:4" in caught.value.needed


def test_upper_blocks_without_sensitive_values_are_refused(config: BundleConfig) -> None:
    tensors = tuple(
        entry.model_copy(update={"sensitive_count": 0}) if ".layers.3." in entry.name else entry
        for entry in config.tensors
    )
    bare = config.model_copy(update={"tensors": tensors})
    with pytest.raises(UnsupportedModel, match=r"last 1 blocks of .* have no sensitive values"):
        tuned_blocks(bare, "upper:1")
    assert tuned_blocks(bare, "upper:2").value_count == 42


def test_a_bundle_that_lists_upper_blocks_first_is_refused(config: BundleConfig) -> None:
    turned = config.model_copy(update={"tensors": tuple(reversed(config.tensors))})
    with pytest.raises(UnsupportedModel, match="lower blocks behind"):
        tuned_blocks(turned, "upper:1")


def test_the_cost_of_a_step_falls_with_the_blocks(config: BundleConfig) -> None:
    """Four blocks of 32·32 · 2 + 16·32 · 2 + 44·32 · 3 weights over 8 × 10 tokens; a head of 259 × 32 for 8 answers."""
    block = 80 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 44 * 32)
    head = 8 * 259 * 32

    costs = [step_cost(config, Workload(8, 10, blocks=f"upper:{count}")) for count in (4, 3, 2, 1)]

    for cost, count in zip(costs, (4, 3, 2, 1), strict=True):
        whole = 2 * (4 * block + head)
        assert cost.kept == pytest.approx(2 * (count * block + head) / whole)
        assert cost.new == pytest.approx((2 * (count * block + head) + (4 - count) * block) / whole)
    assert costs[0].kept == costs[0].new == 1
