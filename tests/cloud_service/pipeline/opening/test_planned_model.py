"""What a plan decides reaches the launcher and the network, and changes no bit of a result."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cloud_service.pipeline.calibration.sequences import Calibration
from cloud_service.pipeline.fisher.launchers.local import FisherWork, LocalLauncher
from cloud_service.pipeline.fisher.totals import FisherTotals
from cloud_service.pipeline.named_input import NamedInput
from cloud_service.pipeline.opening.identity import ResolvedInput
from cloud_service.pipeline.opening.planned_model import (
    Means,
    PlannedModel,
    memory_errors,
    missing_fisher_bytes,
    plan_model,
)
from cloud_service.pipeline.workspace import Workspace
from cloud_service.progress import SilentProgress
from cloud_service.sources import TextSource
from shared.api import PrepareRequest
from shared.errors import Interrupted, ResourceError

MakeCheckpoint = Callable[..., Path]
CALIBRATION = Calibration.of_windows((torch.arange(80).view(5, 16) * 7) % 250)


class RecordingLauncher(LocalLauncher):
    """Remembers the work that it was given."""

    def __init__(self) -> None:
        self.works: list[FisherWork] = []

    def estimate(self, work: FisherWork, totals: FisherTotals, *, after_sequence: Callable[[int], None]) -> None:
        self.works.append(work)
        super().estimate(work, totals, after_sequence=after_sequence)


class Notes(SilentProgress):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.done: list[int] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    def advance(self, done: int) -> None:
        self.done.append(done)


def planned(
    folder: Path, workspace: Workspace, launcher: LocalLauncher, progress: SilentProgress | None = None
) -> PlannedModel:
    workspace.claim("any")
    means = Means(launcher, device="cpu")
    return plan_model(
        NamedInput.of_preparation(PrepareRequest(model=str(folder))),
        ResolvedInput(folder.name, None, folder, TextSource(), TextSource(), "any"),
        means,
        workspace,
        progress or SilentProgress(),
    )


def test_the_plan_is_told_and_no_accelerator_is_used_on_a_cpu(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    progress = Notes()
    model = planned(make_checkpoint(), Workspace(tmp_path / "work"), LocalLauncher(), progress)
    assert [note.partition(":")[0] for note in progress.notes] == ["plan"]
    assert "Fisher sums in main memory" in progress.notes[0]
    assert (model.device, model.accelerators, model.evaluation_dtype_name) == ("cpu", (), "float32")


def test_the_launcher_works_as_planned_and_every_plan_gives_the_same_bits(
    make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    folder, launcher, found = make_checkpoint(num_hidden_layers=2), RecordingLauncher(), []
    plans: dict[str, dict[str, Any]] = {
        "one": {"passes": ((0, 1),)},
        "two": {"passes": ((0,), (1,)), "recomputes_activations": True, "totals_in_memory": False},
        "spread": {"passes": ((0, 1),), "accumulators": "host", "device_map": {"": "cpu"}},
    }
    for name, changes in plans.items():
        workspace, progress = Workspace(tmp_path / name), Notes()
        model = planned(folder, workspace, launcher)
        model = dataclasses.replace(model, plan=dataclasses.replace(model.plan, **changes))
        found.append(dict(model.estimate_fisher(CALIBRATION, workspace, progress).diagonal()))
        assert progress.done[-1] == 5 * len(changes["passes"])
    one, two, spread = launcher.works
    assert (one.passes.groups, one.passes.recomputes_activations, one.device_map) == (((0, 1),), False, None)
    assert (two.passes.groups, two.passes.recomputes_activations) == (((0,), (1,)), True)
    assert (spread.passes.accumulates_on_host, spread.device_map) == (True, {"": "cpu"})
    for other in found[1:]:
        assert all(torch.equal(other[name], values) for name, values in found[0].items())


def test_totals_that_are_there_are_not_computed_again(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    workspace, launcher, again = Workspace(tmp_path / "work"), RecordingLauncher(), Notes()
    model = planned(make_checkpoint(num_hidden_layers=1), workspace, launcher)
    model.estimate_fisher(CALIBRATION, workspace, SilentProgress())
    assert model.estimate_fisher(CALIBRATION, workspace, again).is_complete
    assert (len(launcher.works), again.done) == (1, [5])


def test_a_resumed_pass_asks_only_for_the_space_of_what_is_not_stored(
    make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    class CutAfterTheFirstHalf(SilentProgress):
        def advance(self, done: int) -> None:
            if done == 3:  # shards of 1, 1, 1 and 2 sequences: the first two are added
                raise Interrupted("stopped by the test")

    workspace = Workspace(tmp_path / "work")
    model = planned(make_checkpoint(num_hidden_layers=2), workspace, LocalLauncher())

    def missing() -> int:
        totals = FisherTotals(workspace, model.outline.block_linears, 5, keeps_in_memory=True)
        return missing_fisher_bytes(model.outline, totals, 5)

    block = 4 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 44 * 32)
    assert missing() == (4 + 1) * block  # two halves of two blocks, and one temporary
    with pytest.raises(Interrupted):
        model.estimate_fisher(CALIBRATION, workspace, CutAfterTheFirstHalf())
    assert missing() == (2 + 1) * block


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried …\nmore"), MemoryError()])
def test_a_failed_allocation_names_what_would_do(error: Exception) -> None:
    with pytest.raises(ResourceError, match="out of memory") as caught, memory_errors():
        raise error
    assert "zo-cloud plan" in str(caught.value.needed)
