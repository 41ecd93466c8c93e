"""The real launcher and the real job process around a fake work."""

from __future__ import annotations

import fcntl
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloud_service.jobs.launcher import Ended, JobProcess, SubprocessLauncher
from cloud_service.jobs.messages import Finished, JobOrder, Message, StageBegan
from cloud_service.settings import job_environment
from shared.api import PrepareRequest

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
