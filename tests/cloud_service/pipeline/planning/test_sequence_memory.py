"""The formulas of one sequence's memory, against what operators really hold (``live_bytes``)."""

from __future__ import annotations

import pytest
import torch
from live_bytes import LiveBytes
from random_network import random_network
from tiny_checkpoint import CONFIGS

from cloud_service.pipeline.calibration.sequences import Calibration
from cloud_service.pipeline.fisher.squared_gradients import sum_squares, zero_sums
from cloud_service.pipeline.planning.family_shapes import shapes_of_config
from cloud_service.pipeline.planning.model_shape import shape_of_tensors
from cloud_service.pipeline.planning.sequence_memory import SequenceMemory
from shared.architecture import FAMILIES, safe_config

BLOCKS, TOKENS = 4, 96
WIDE = {"hidden_size": 64, "num_hidden_layers": BLOCKS, "vocab_size": 260, "max_position_embeddings": 128}


SIZES: dict[str, dict[str, object]] = {
    "opt": {"ffn_dim": 192, "word_embed_proj_dim": 64},
    "gpt2": {"n_embd": 64, "n_layer": BLOCKS, "n_positions": 128, "n_inner": 192},
    "phi3": {"intermediate_size": 192, "rope_scaling": None},
    "smollm3": {"intermediate_size": 192, "head_dim": 16, "no_rope_layers": [1, 0, 1, 0]},
    "gemma2": {"intermediate_size": 192, "head_dim": 16, "sliding_window": 256},
    "gemma3_text": {"intermediate_size": 192, "head_dim": 16, "sliding_window": 256, "layer_types": None},
}


def config_of(family: str, **changes: object) -> dict[str, object]:
    sizes = SIZES.get(family, {"intermediate_size": 192, "head_dim": 16})
    return safe_config(CONFIGS[family] | WIDE | sizes | {"model_type": family} | changes)


def live_peak(config: dict[str, object], dtype: torch.dtype, group: set[int], *, recomputes: bool) -> int:
    """Return the live bytes at the hungriest moment of a Fisher pass over one sequence."""
    made = random_network(config, device="cpu", dtype=dtype)
    linears = made.weights(tuple(sorted(group)))
    tokens = torch.randint(0, 256, (1, TOKENS), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    sums = zero_sums(linears)
    with LiveBytes() as live:
        recomputed = made.blocks if recomputes else ()
        sum_squares(made.network, linears, Calibration.of_windows(tokens), range(1), sums, recomputed_blocks=recomputed)
    assert all(total.sum() > 0 for total in sums.values())
    return live.peak


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_what_a_sequence_holds_is_predicted_within_two_percent(family: str, dtype: torch.dtype) -> None:
    config = config_of(family)
    group = set(range(BLOCKS))
    predicted = SequenceMemory(shape_of_tensors(config, shapes_of_config(config)), TOKENS, dtype.itemsize)
    measured = live_peak(config, dtype, group, recomputes=False)
    assert predicted.peak(range(BLOCKS), group, recomputes=False) == pytest.approx(measured, rel=0.02)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("gpt_neox", {"use_parallel_residual": False}),
        ("stablelm", {"use_parallel_residual": True}),
        ("stablelm", {"qk_layernorm": True}),
    ],
    ids=str,
)
def test_other_forms_of_a_family_are_predicted_within_two_percent(family: str, changes: dict[str, object]) -> None:
    config = config_of(family, **changes)
    predicted = SequenceMemory(shape_of_tensors(config, shapes_of_config(config)), TOKENS, 4)
    measured = live_peak(config, torch.float32, set(range(BLOCKS)), recomputes=False)
    assert predicted.peak(range(BLOCKS), set(range(BLOCKS)), recomputes=False) == pytest.approx(measured, rel=0.02)


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3_text"])
def test_a_window_shorter_than_the_sequence_is_predicted_never_more_than_3_percent_low_nor_20_high(
    family: str,
) -> None:
    config = config_of(family, sliding_window=32)
    predicted = SequenceMemory(shape_of_tensors(config, shapes_of_config(config)), TOKENS, 4)
    measured = live_peak(config, torch.float32, set(range(BLOCKS)), recomputes=False)
    peak = predicted.peak(range(BLOCKS), set(range(BLOCKS)), recomputes=False)
    assert 0.97 * measured <= peak <= 1.20 * measured


@pytest.mark.parametrize("group", [{0, 1, 2, 3}, {2, 3}, {0, 1}, {1, 3}], ids=str)
@pytest.mark.parametrize("recomputes", [False, True])
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_passes_over_groups_and_recomputation_are_predicted_never_more_than_3_percent_low_nor_10_high(
    family: str, group: set[int], recomputes: bool
) -> None:
    config = config_of(family)
    memory = SequenceMemory(shape_of_tensors(config, shapes_of_config(config)), TOKENS, 4)
    measured = live_peak(config, torch.float32, group, recomputes=recomputes)
    assert 0.97 * measured <= memory.peak(range(BLOCKS), group, recomputes=recomputes) <= 1.10 * measured


def test_autograd_saves_what_the_formula_of_a_block_says() -> None:
    config = config_of("llama", intermediate_size=192)
    # Per token, float32: 4·192 MLP + 2·64 normed inputs + 2·64 residuals + 2·64 q, o + 2·32 k, v; 4 heads; 2 norms.
    expected = TOKENS * 4 * (4 * 192 + 2 * 64 + 2 * 64 + 2 * 64 + 2 * 32 + 4 + 2)
    shape = shape_of_tensors(config, shapes_of_config(config))
    assert SequenceMemory(shape, TOKENS, 4).block_bytes() == expected


def test_a_large_vocabulary_makes_the_loss_the_hungriest_moment() -> None:
    config = config_of("llama", vocab_size=4096)
    shape = shape_of_tensors(config, shapes_of_config(config))
    measured = live_peak(config, torch.float32, set(range(BLOCKS)), recomputes=True)
    predicted = SequenceMemory(shape, TOKENS, 4).peak(range(BLOCKS), set(range(BLOCKS)), recomputes=True)
    assert predicted == pytest.approx(measured, rel=0.02)
    assert predicted > 3 * (TOKENS - 1) * 4096 * 4


def test_blocks_below_the_group_hold_nothing() -> None:
    config = config_of("llama", num_hidden_layers=12)
    memory = SequenceMemory(shape_of_tensors(config, shapes_of_config(config)), TOKENS, 4)
    assert memory.peak(range(12), {11}, recomputes=False) < memory.peak(range(12), {0}, recomputes=False) / 4
    assert memory.peak(range(5), {7}, recomputes=False, has_loss=False) == 0
