"""The Fisher pass with one block in memory at a time: the bits of the whole network's, whatever the group of shards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cloud_service.pipeline.calibration.sequences import Calibration
from cloud_service.pipeline.fisher.launchers.local import FisherPasses, FisherWork, LocalLauncher
from cloud_service.pipeline.fisher.streamed_squares import estimate_by_block
from cloud_service.pipeline.fisher.totals import FisherTotals
from cloud_service.pipeline.model.load_model import read_outline
from cloud_service.pipeline.model.streamed_model import stream_model
from cloud_service.pipeline.workspace import Workspace
from shared.architecture import FAMILIES
from shared.errors import UnsupportedModel

MakeCheckpoint = Callable[..., Path]
WHOLE = FisherPasses(((0, 1),))
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {family: (family, {}) for family in FAMILIES} | {
    "mistral with a window": ("mistral", {"sliding_window": 5}),
    "qwen2 with a window in its second block": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "opt with its norm after": ("opt", {"do_layer_norm_before": False}),
    "llama untied": ("llama", {"tie_word_embeddings": False}),
}


@pytest.fixture
def calibration() -> Calibration:
    """Five sequences of different lengths: four shards, the last one of two."""
    tokens = torch.randint(0, 256, (5, 20), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    starts, ends = torch.tensor([1, 1, 3, 1, 2]), torch.tensor([20, 20, 12, 20, 7])
    return Calibration(tokens, starts.to(torch.int32), ends.to(torch.int32))


def streamed(shards: int) -> FisherPasses:
    return FisherPasses(((0, 1),), recomputes_activations=True, streamed_shards=shards)


def estimate(
    folder: Path, calibration: Calibration, workspace: Path, passes: FisherPasses, *, stop_at: int | None = None
) -> FisherTotals:
    """Run the pass; where asked, stop it when it tells of something for the ``stop_at``-th time."""
    outline = read_outline(folder)
    Workspace(workspace).claim("fingerprint")
    totals = FisherTotals(Workspace(workspace), outline.block_linears, len(calibration), keeps_in_memory=True)
    told: list[int] = []

    def after_sequence(done: int) -> None:
        told.append(done)
        if len(told) == stop_at:
            raise KeyboardInterrupt

    work = FisherWork(outline, folder, calibration, passes, "cpu")
    LocalLauncher().estimate(work, totals, after_sequence=after_sequence)
    assert told == sorted(told)
    assert told[-1] == len(calibration)
    return totals


def assert_same(first: FisherTotals, second: FisherTotals) -> None:
    for ours, theirs in zip(first.halves(), second.halves(), strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        assert any(float(ours[name].max()) > 0 for name in ours)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_family_has_the_bits_of_the_whole_network(
    make_checkpoint: MakeCheckpoint, calibration: Calibration, tmp_path: Path, variant: str
) -> None:
    family, changes = VARIANTS[variant]
    folder = make_checkpoint(family, **changes)
    whole = estimate(folder, calibration, tmp_path / "whole", WHOLE)
    assert_same(whole, estimate(folder, calibration, tmp_path / "streamed", streamed(4)))


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_how_many_shards_go_together_changes_no_bit(
    make_checkpoint: MakeCheckpoint, calibration: Calibration, tmp_path: Path, shards: int
) -> None:
    folder = make_checkpoint()
    whole = estimate(folder, calibration, tmp_path / "whole", WHOLE)
    assert_same(whole, estimate(folder, calibration, tmp_path / "streamed", streamed(shards)))


@pytest.mark.parametrize("stop_at", [1, 2, 4, 6, 8, 10, 13])
def test_a_pass_that_was_stopped_anywhere_continues_to_the_same_totals(
    make_checkpoint: MakeCheckpoint, calibration: Calibration, tmp_path: Path, stop_at: int
) -> None:
    folder = make_checkpoint()
    whole = estimate(folder, calibration, tmp_path / "whole", WHOLE)
    with pytest.raises(KeyboardInterrupt):
        estimate(folder, calibration, tmp_path / "work", streamed(2), stop_at=stop_at)
    other_way = streamed(3) if stop_at % 4 else WHOLE
    assert_same(whole, estimate(folder, calibration, tmp_path / "work", other_way))


def test_a_block_is_in_memory_only_while_it_is_used(make_checkpoint: MakeCheckpoint) -> None:
    model = stream_model(read_outline(make_checkpoint()))

    def blocks_in_memory() -> list[bool]:
        return [not any(weight.is_meta for weight in block.parameters()) for block in model.blocks]

    assert not any(model.parameters[name].is_meta for name in model.outline.trunk)
    assert blocks_in_memory() == [False, False]
    with model.block(1) as block:
        assert blocks_in_memory() == [False, True]
        name = model.outline.block_linears[1][0]
        assert torch.equal(model.parameters[name], model.outline.weights.read(name).float())
        block.requires_grad_(True)
    assert blocks_in_memory() == [False, False]
    assert not any(weight.requires_grad for weight in model.parameters.values())


def test_a_loss_that_is_not_finite_is_refused_by_its_sequence(
    make_checkpoint: MakeCheckpoint, calibration: Calibration, tmp_path: Path
) -> None:
    model = stream_model(read_outline(make_checkpoint(tie_word_embeddings=False)))
    model.parameters["lm_head.weight"].data[0, 0] = float("nan")
    totals = FisherTotals(Workspace(tmp_path), model.outline.block_linears, 5, keeps_in_memory=True)
    with pytest.raises(UnsupportedModel, match="the loss of calibration sequence 0 is not finite"):
        estimate_by_block(model, calibration, totals, 4, after_sequence=lambda _: None)
