"""Which weights are quantised as one, and which groups at the same time."""

from __future__ import annotations

import torch

from cloud_service.pipeline.quantizers.weight_groups import MOST_TOGETHER, groups_at_once, weight_groups

SHAPES = {"q": (8, 4), "k": (4, 4), "v": (4, 4), "o": (4, 8), "gate": (12, 4), "up": (12, 4), "down": (4, 12)}
NORMED, ATTENDED, NORMED_AGAIN, GATED = (torch.eye(size) for size in (4, 8, 4, 12))
MOMENTS = dict(zip(SHAPES, [NORMED] * 3 + [ATTENDED] + [NORMED_AGAIN] * 2 + [GATED], strict=True))


def test_weights_that_share_their_inputs_are_one_group() -> None:
    assert weight_groups(SHAPES, MOMENTS) == [["q", "k", "v"], ["o"], ["gate", "up"], ["down"]]


def test_equal_moments_of_other_inputs_do_not_join_weights() -> None:
    apart = MOMENTS | {"k": NORMED.clone()}
    assert weight_groups(SHAPES, apart)[:3] == [["q"], ["k"], ["v"]]


def test_weights_without_moments_are_each_a_group() -> None:
    assert weight_groups(SHAPES, {}) == [[name] for name in SHAPES]


def test_a_weight_that_keeps_its_codes_is_a_group_of_its_own() -> None:
    assert weight_groups(SHAPES, MOMENTS, alone={"k", "gate"}) == [
        ["q"], ["k"], ["v"], ["o"], ["gate"], ["up"], ["down"]
    ]  # fmt: skip


def test_a_group_stays_within_the_bound_on_scratch() -> None:
    rows = MOST_TOGETHER // 2 // 4096
    large = dict.fromkeys(("q", "k", "v"), (rows, 4096))
    assert weight_groups(large, dict.fromkeys(large, NORMED)) == [["q", "k"], ["v"]]


def test_groups_of_a_small_block_run_at_the_same_time_on_a_processor_alone() -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert groups_at_once(SHAPES, "cpu") == 2
        torch.set_num_threads(64)
        assert groups_at_once(SHAPES, "cpu") == 4
        assert groups_at_once(SHAPES, "cuda:0") == 1
        assert groups_at_once({"down": (MOST_TOGETHER, 2)}, "cpu") == 1
    finally:
        torch.set_num_threads(threads)
