"""The real launcher and the real job process around a fake work."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloud_service.jobs.launcher import Ended, JobProcess, SubprocessLauncher
from cloud_service.jobs.messages import Finished, JobOrder, Message, Noted, StageBegan
from cloud_service.jobs.process_usage import descendants
from cloud_service.settings import job_environment
from shared.api import CalibrationSpec, PrepareRequest
from shared.errors import InvalidRequest

FAKE = Path(__file__).resolve().parents[1] / "service" / "fake_job.py"
PATIENCE_SECONDS = 60


class Job:
    """One job's folder and its processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "job"
        self.model = folder / "models" / "tiny"
        self.order = JobOrder(
            request=PrepareRequest(model="tiny"),
            model_roots=(folder / "models",),
            progress_seconds=0,
        )
        self.processes: list[JobProcess] = []

    def start(self) -> JobProcess:
        launcher = SubprocessLauncher(job_environment(), (sys.executable, "-W", "error", str(FAKE)))
        self.processes.append(launcher.start(self.folder, self.order))
        return self.processes[-1]


def messages_until_end(process: JobProcess) -> list[Message | Ended]:
    heard: list[Message | Ended] = []
    while not heard or not isinstance(heard[-1], Ended):
        message = process.receive(PATIENCE_SECONDS)
        assert message is not None
        heard.append(message)
    return heard


@pytest.fixture
def job(tmp_path: Path, tiny_bundle: Any) -> Iterator[Job]:
    made = Job(tmp_path)
    made.model.mkdir(parents=True)
    (made.model / "content").write_text("weights")
    shutil.copytree(tiny_bundle.layout.root, made.model / "bundle")
    yield made
    for process in made.processes:
        process.kill()


def test_a_process_tells_its_stages_and_its_outcome_and_ends(job: Job) -> None:
    heard = messages_until_end(job.start())
    assert heard[-1] == Ended(0)
    assert isinstance(heard[-2], Finished)
    assert sum(isinstance(message, StageBegan) for message in heard) >= 7
    assert (job.folder / "workspace" / "report.html").read_bytes().startswith(b"<!doctype html>")


def test_a_second_attempt_waits_until_the_first_is_gone(job: Job) -> None:
    job.folder.mkdir()
    with (job.folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = job.start()
        assert process.receive(1.5) is None
        assert "trace" not in (job.folder / "log.txt").read_text()
    assert messages_until_end(process)[-1] == Ended(0)


def test_sigterm_ends_the_work_at_its_next_report_with_the_status_of_an_interruption(job: Job) -> None:
    (job.model / "hold").write_text("calibrating")
    process = job.start()
    while not isinstance(message := process.receive(PATIENCE_SECONDS), StageBegan) or message.stage != "calibrating":
        assert message is not None
    process.interrupt()
    heard = messages_until_end(process)
    assert heard[-1] == Ended(130)
    assert not any(isinstance(message, Finished) for message in heard)


def test_the_hub_token_is_written_nowhere_in_the_folder_of_the_job(job: Job) -> None:
    job.order = job.order.model_copy(update={"hub_token": "hf_secret"})
    messages_until_end(job.start())
    files = [path for path in job.folder.rglob("*") if path.is_file()]
    assert files
    assert not any(b"hf_secret" in path.read_bytes() for path in files)


def test_a_request_that_cannot_be_written_down_is_refused_before_anything_is_started(job: Job) -> None:
    text = CalibrationSpec.model_construct(text="\ud800")
    job.order = job.order.model_copy(update={"request": job.order.request.model_copy(update={"calibration": text})})
    with pytest.raises(InvalidRequest, match="cannot be written down"):
        job.start()
    assert not job.folder.exists()


def test_a_process_that_ends_before_it_read_its_order_is_reaped(tmp_path: Path) -> None:
    others = descendants(os.getpid())
    launcher = SubprocessLauncher(job_environment(), (sys.executable, "-c", "raise SystemExit('no order for me')"))
    order = JobOrder(request=PrepareRequest(model="tiny"), model_roots=tuple(map(Path, ["/" + "x" * 200] * 2000)))
    process = launcher.start(tmp_path / "job", order)
    ended = messages_until_end(process)[-1]
    process.kill()
    assert str(ended) == "the job's process ended with exit status 1 and no result: no order for me"
    assert set(descendants(os.getpid())) <= set(others)


def test_an_order_that_is_never_read_blocks_nobody(tmp_path: Path) -> None:
    launcher = SubprocessLauncher(job_environment(), (sys.executable, "-c", "import time; time.sleep(60)"))
    order = JobOrder(request=PrepareRequest(model="tiny"), model_roots=tuple(map(Path, ["/" + "x" * 200] * 2000)))
    process = launcher.start(tmp_path / "job", order)
    process.kill()
    assert messages_until_end(process) == [Ended(-9)]


def test_usage_counts_all_processes_and_the_log(tmp_path: Path) -> None:
    script = (
        "import os, time; taken = bytearray(b'x') * (100 << 20); os.fork(); os.write(2, b'said' * 25);"
        'os.write(1, b\'{"kind":"note","message":"ready"}\\n\'); time.sleep(60)'
    )
    process = SubprocessLauncher(job_environment(), (sys.executable, "-c", script)).start(
        tmp_path / "job", JobOrder(request=PrepareRequest(model="tiny"))
    )
    for _ in range(2):
        assert isinstance(process.receive(PATIENCE_SECONDS), Noted)
    usage = process.usage()
    process.kill()
    assert 100 << 20 <= usage.memory_bytes < 300 << 20
    assert (usage.tasks, usage.log_bytes) == (2, 200)


def test_a_temporary_folder_is_empty_at_the_start_and_gone_at_the_end(job: Job) -> None:
    (job.folder / "tmp").mkdir(parents=True)
    (job.folder / "tmp" / "left").touch()
    process = job.start()
    assert not (job.folder / "tmp" / "left").exists()
    messages_until_end(process)
    process.kill()
    assert not (job.folder / "tmp").exists()
