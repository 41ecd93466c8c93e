"""A preparation under a budget that does not hold the network: read block by block, and the same bundle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cloud_service.memory_budget import MemoryBudget
from cloud_service.pipeline.fisher.launchers.ray_cluster import RayLauncher
from cloud_service.pipeline.named_input import NamedInput
from cloud_service.pipeline.opening.open_model import open_model
from cloud_service.pipeline.opening.planned_model import Means
from cloud_service.pipeline.prepare import PreparedBundle, prepare
from cloud_service.progress import SilentProgress
from cloud_service.sources import SourcePolicy
from shared.api import PrepareRequest
from shared.bundle.layout import ImageLayout
from shared.errors import ResourceError

MakeCheckpoint = Callable[..., Path]
MIB = 1 << 20
WIDE = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 8}
"""25 MB of weights in float32, eight times what one block takes."""


class Notes(SilentProgress):
    """Keeps the notes."""

    def __init__(self) -> None:
        self.plan = ""

    def note(self, message: str) -> None:
        self.plan = message if message.startswith("plan:") else self.plan


@pytest.fixture
def request_(make_checkpoint: MakeCheckpoint, text: Path) -> PrepareRequest:
    return PrepareRequest.model_validate(
        {
            "model": str(make_checkpoint(**WIDE)),
            "sparsity": 0.01,
            "calibration": {"text": str(text), "sequences": 6, "tokens_per_sequence": 24},
            "evaluation": {"documents": 4},
            "quantizer": {"method": "rtn", "bits": 4, "group_size": 64, "compensation": "gptq"},
        }
    )


def prepared(request: PrepareRequest, folder: Path, means: Means) -> tuple[PreparedBundle, str]:
    """Return the bundle, and what was said of the plan."""
    progress = Notes()
    made = prepare(
        request,
        workspace=folder / "work",
        layout=ImageLayout.create(folder / "store"),
        progress=progress,
        sources=SourcePolicy(allow_any_local=True),
        means=means,
    )
    return made, progress.plan


def smallest_budget(request: PrepareRequest, folder: Path) -> MemoryBudget:
    """Return the smallest budget that is not refused, to the MiB, with 8 MiB that this process may grow by.

    What the process itself takes counts, and that may be a gigabyte after other tests: the refusal of a smaller budget
    names the smallest one too roughly then.
    """
    named = NamedInput.of_preparation(request)
    policy = SourcePolicy(allow_any_local=True)
    refused, enough = 1, 1 << 14
    with open_model(named, workspace=folder, policy=policy, progress=SilentProgress()) as opened:
        while enough - refused > 1:
            middle = (refused + enough) // 2
            try:
                opened.plan(Means(device="cpu", budget=MemoryBudget(max_host_bytes=middle * MIB)))
            except ResourceError:
                refused = middle
            else:
                enough = middle
    return MemoryBudget(max_host_bytes=(enough + 8) * MIB)


def test_the_bundle_and_its_perplexities_are_those_of_the_whole_network(
    request_: PrepareRequest, tmp_path: Path
) -> None:
    whole, plan_of_whole = prepared(request_, tmp_path / "whole", Means(device="cpu"))
    budget = smallest_budget(request_, tmp_path / "refused")
    streamed, plan_of_streamed = prepared(request_, tmp_path / "streamed", Means(device="cpu", budget=budget))
    assert "block by block" in plan_of_streamed
    assert "block by block" not in plan_of_whole
    assert streamed.manifest.digest == whole.manifest.digest
    assert streamed.report == whole.report
    assert streamed.run.passes == 1


def test_the_bundles_perplexity_is_that_of_its_coded_embedding(request_: PrepareRequest, tmp_path: Path) -> None:
    reports = {
        bits: prepared(request_.model_copy(update={"embedding_bits": bits}), tmp_path / str(bits), Means(device="cpu"))[
            0
        ].report["perplexity"]
        for bits in (4, 16)
    }
    assert reports[4]["16bit"] == reports[16]["16bit"]
    assert reports[4]["bundle"] != reports[16]["bundle"]


def test_ray_workers_refuse_a_network_that_is_read_block_by_block(request_: PrepareRequest, tmp_path: Path) -> None:
    budget = smallest_budget(request_, tmp_path / "refused")
    means = Means(RayLauncher(workers=1), budget=budget, device="cpu")
    with pytest.raises(ResourceError, match="block by block") as caught:
        prepared(request_, tmp_path / "work", means)
    assert "--launcher local" in caught.value.next_step
