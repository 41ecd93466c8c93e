"""Which devices a Ray worker computes on, and how many workers a machine's memory holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cloud_service.pipeline.calibration.sequences import Calibration
from cloud_service.pipeline.fisher.launchers.local import FisherPasses, FisherWork
from cloud_service.pipeline.fisher.launchers.ray_cluster import RayLauncher
from cloud_service.pipeline.fisher.launchers.ray_workers import check_memory, largest_shard_bytes, worker_devices
from cloud_service.pipeline.model.load_model import read_outline
from shared.errors import ResourceError

MakeWork = Callable[..., FisherWork]
WHOLE = FisherPasses(((0, 1),))


@pytest.fixture
def make_work(make_checkpoint: Callable[..., Path]) -> MakeWork:
    folder = make_checkpoint()

    def make(device: str = "cpu", passes: FisherPasses = WHOLE, **more: Any) -> FisherWork:
        calibration = Calibration.of_windows(torch.zeros((2, 8), dtype=torch.int32))
        return FisherWork(read_outline(folder), folder, calibration, passes, device, **more)

    return make


@pytest.mark.parametrize("drivers", ["cpu", "cuda:0", "cuda:3"])
def test_the_choice_decides_the_workers_device_and_not_what_the_driver_has(make_work: MakeWork, drivers: str) -> None:
    assert worker_devices(make_work(drivers), gpus=0) == ("cpu", None)
    assert worker_devices(make_work(drivers), gpus=1) == ("cuda", None)
    assert RayLauncher(gpus=1).arithmetic(make_work(drivers)) == "bfloat16 cuda"
    assert RayLauncher(threads=3).arithmetic(make_work(drivers)) == "float32 cpu threads=3"


def test_a_model_over_several_accelerators_is_sent_with_the_workers_own_numbers(make_work: MakeWork) -> None:
    work = make_work("cuda:1", device_map={"embed": 1, "layers.0": 1, "layers.1": 3, "head": 3})
    expected = {"embed": 0, "layers.0": 0, "layers.1": 1, "head": 1}
    assert worker_devices(work, gpus=2) == ("cuda", expected)
    assert worker_devices(work, gpus=4) == ("cuda", expected)
    assert worker_devices(work, gpus=0) == ("cpu", None)


def test_a_plan_for_more_accelerators_than_a_worker_has_is_refused(make_work: MakeWork) -> None:
    work = make_work("cuda:0", device_map={"embed": 0, "layers": 1, "head": 2})
    with pytest.raises(ResourceError, match="planned on 3") as caught:
        worker_devices(work, gpus=2)
    assert "--ray-worker-gpus 3" in str(caught.value)


def test_the_sums_of_a_shard_are_four_bytes_per_weight_of_the_largest_group(make_work: MakeWork) -> None:
    outline = make_work().outline
    weights = [sum(int(torch.tensor(outline.shapes[name]).prod()) for name in names) for names in outline.block_linears]
    assert weights[0] == weights[1]
    assert largest_shard_bytes(make_work()) == 4 * (weights[0] + weights[1])
    assert largest_shard_bytes(make_work(passes=FisherPasses(((0,), (1,))))) == 4 * weights[0]


def test_more_workers_than_memory_holds_are_refused_with_the_number_that_fits(make_work: MakeWork) -> None:
    shard = largest_shard_bytes(make_work())
    work = make_work(worker_host_bytes=1000, host_budget=3 * 1000 + 4 * shard)
    check_memory(work, 3)
    with pytest.raises(ResourceError, match="4 Ray workers") as caught:
        check_memory(work, 4)
    assert "--ray-workers 3" in str(caught.value)
    assert caught.value.param == "ray_workers"
    with pytest.raises(ResourceError, match="--launcher local"):
        check_memory(make_work(worker_host_bytes=1000, host_budget=999), 1)


def test_memory_that_is_not_known_refuses_nobody(make_work: MakeWork) -> None:
    check_memory(make_work(host_budget=1), 4096)
    check_memory(make_work(worker_host_bytes=1 << 60), 4096)
