"""The Fisher pass on a real Ray cluster of several worker processes: the same bits as one process, whatever dies."""

from __future__ import annotations

import os
import re
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch

from cloud_service.pipeline.calibration.sequences import Calibration
from cloud_service.pipeline.fisher.launchers.local import FisherLauncher, FisherPasses, FisherWork, LocalLauncher
from cloud_service.pipeline.fisher.launchers.ray_cluster import RayLauncher
from cloud_service.pipeline.fisher.launchers.ray_connection import own_cluster
from cloud_service.pipeline.fisher.totals import FisherTotals
from cloud_service.pipeline.model.load_model import read_outline
from cloud_service.pipeline.workspace import Workspace
from shared.errors import Interrupted, ResourceError, UnsupportedModel

MakeCheckpoint = Callable[..., Path]
WHOLE = FisherPasses(((0, 1),))
THREADS = torch.get_num_threads()


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A cluster of our own that outlives one test, started where the environment holds a secret."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZO_CLOUD_HUB_TOKEN", "hf_secret")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "aws_secret")
        before = dict(os.environ)
        with own_cluster(processors=3 * THREADS):
            assert dict(os.environ) == before
            yield


@pytest.fixture
def folder(make_checkpoint: MakeCheckpoint) -> Path:
    return make_checkpoint()


def calibration(sequences: int = 20) -> Calibration:
    tokens = torch.randint(0, 256, (sequences, 24), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    return Calibration.of_windows(tokens)


def estimate(
    folder: Path,
    workspace: Path,
    launcher: FisherLauncher,
    passes: FisherPasses = WHOLE,
    *,
    after_sequence: Callable[[int], None] = lambda _: None,
) -> FisherTotals:
    outline = read_outline(folder)
    Workspace(workspace).claim("fingerprint")
    totals = FisherTotals(Workspace(workspace), outline.block_linears, 20, keeps_in_memory=True)
    work = FisherWork(outline, folder, calibration(), passes, "cpu")
    launcher.estimate(work, totals, after_sequence=after_sequence)
    return totals


def cluster_processes() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def private_folders() -> set[Path]:
    words = [word for process in cluster_processes() for word in process.cmdline()]
    return {Path(found[0]) for word in words if (found := re.search(r"/[^=]*?/zo-ray-[^/]+", word))}


def assert_same(first: FisherTotals, second: FisherTotals) -> None:
    for ours, theirs in zip(first.halves(), second.halves(), strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_cluster_leaves_no_process_no_file_and_no_signal_handler_behind(folder: Path, tmp_path: Path) -> None:
    processes, handler, environment = cluster_processes(), signal.getsignal(signal.SIGTERM), dict(os.environ)
    seen: set[object] = set()

    def look(_done: int) -> None:
        seen.add(signal.getsignal(signal.SIGTERM))

    with own_cluster(processors=THREADS):
        (private,) = private_folders()
        estimate(folder, tmp_path / "work", RayLauncher(threads=THREADS), after_sequence=look)
    assert seen == {handler}
    assert not private.exists()
    assert dict(os.environ) == environment
    assert cluster_processes() <= processes


def test_several_workers_in_two_passes_give_the_bits_of_one_process(
    cluster: None, folder: Path, tmp_path: Path
) -> None:
    told: list[int] = []
    here = estimate(folder, tmp_path / "here", LocalLauncher())
    two = FisherPasses(((0,), (1,)))
    there = estimate(
        folder, tmp_path / "there", RayLauncher(workers=3, threads=THREADS), two, after_sequence=told.append
    )
    assert_same(here, there)
    assert told == sorted(told)
    assert told[-1] == 2 * 20


def test_workers_killed_mid_way_cost_nothing_but_their_shards(cluster: None, folder: Path, tmp_path: Path) -> None:
    stopped: list[psutil.Process] = []
    killed: list[psutil.Process] = []

    def stop_then_kill(done: int) -> None:
        if not stopped:
            stopped.extend(child for child in cluster_processes() if child.name() in ("ray::IDLE", "ray::_sum_blocks"))
            for process in stopped:
                process.suspend()
        elif not killed:  # told although no sequence was done: shards wait in the workers that stand still
            killed.extend(stopped)
            for process in stopped:
                process.kill()

    here = estimate(folder, tmp_path / "here", LocalLauncher())
    there = estimate(folder, tmp_path / "there", RayLauncher(workers=2, threads=THREADS), after_sequence=stop_then_kill)
    assert killed
    assert_same(here, there)


def test_a_pass_begun_by_a_cluster_is_finished_by_this_process(cluster: None, folder: Path, tmp_path: Path) -> None:
    def stop(done: int) -> None:
        if done >= 5:
            raise Interrupted("stopped by the test")

    with pytest.raises(Interrupted):
        estimate(folder, tmp_path / "work", RayLauncher(workers=2, threads=THREADS), after_sequence=stop)
    assert (
        FisherTotals(
            Workspace(tmp_path / "work"), read_outline(folder).block_linears, 20, keeps_in_memory=True
        ).next_shard((0, 1))
        >= 4
    )
    assert_same(
        estimate(folder, tmp_path / "here", LocalLauncher()), estimate(folder, tmp_path / "work", LocalLauncher())
    )


def test_what_a_worker_refuses_is_refused_with_the_same_words(cluster: None, folder: Path, tmp_path: Path) -> None:
    work = FisherWork(read_outline(folder), folder, calibration(), WHOLE, "cpu")
    Workspace(tmp_path / "work").claim("fingerprint")
    totals = FisherTotals(Workspace(tmp_path / "work"), work.outline.block_linears, 20, keeps_in_memory=True)
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-100])
    with pytest.raises(UnsupportedModel, match="undamaged safetensors file"):
        RayLauncher(threads=THREADS).estimate(work, totals, after_sequence=lambda _: None)


def test_a_cluster_that_is_not_there_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"no Ray cluster at 127\.0\.0\.1:1"):
        estimate(folder, tmp_path / "work", RayLauncher(address="127.0.0.1:1"))


def test_nobody_outside_this_machine_can_reach_the_cluster(cluster: None) -> None:
    processes = [psutil.Process(), *cluster_processes()]
    sockets = [socket for process in processes for socket in process.net_connections("inet")]
    listening = [socket.laddr.ip.removeprefix("::ffff:") for socket in sockets if not socket.raddr]
    assert len(listening) >= 5
    assert set(listening) == {"127.0.0.1"}


def test_no_process_of_the_cluster_sees_a_secret(cluster: None) -> None:
    import ray

    environments = [ray.get(ray.remote(lambda: dict(os.environ)).remote())]
    environments += [process.environ() for process in cluster_processes()]
    assert "PATH" in environments[0]
    assert not [value for environment in environments for value in environment.values() if "_secret" in value]


def test_nobody_else_on_this_machine_can_look_into_the_clusters_files(cluster: None) -> None:
    (private,) = private_folders()
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
