"""The worker threads: nothing that happens to one job stops the others."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloud_service.jobs.attempt import Workshop
from cloud_service.jobs.launcher import Ended, JobProcess
from cloud_service.jobs.limits import Usage
from cloud_service.jobs.messages import Failed, JobOrder, Message
from cloud_service.jobs.publication import Publisher
from cloud_service.jobs.record import JobRecord
from cloud_service.jobs.store import JobStore
from cloud_service.jobs.supervisor import Supervisor
from cloud_service.settings import Settings
from cloud_service.storage.bundles import BundleStore
from cloud_service.storage.database import open_database
from cloud_service.storage.signing import BundleSigner
from shared.api import JobError, JobStatus, PrepareRequest
from shared.bundle.layout import ImageLayout
from shared.errors import DiskError

OUTCOMES = {"broken": RuntimeError("no such program"), "full": DiskError("0 bytes free", next_step="free some space")}


class FailedProcess:
    """A process that reports an error and ends."""

    def __init__(self) -> None:
        self._messages: list[Message | Ended] = [Failed(error=JobError(type="data-error", message="m")), Ended(9)]

    def receive(self, timeout_seconds: float) -> Message | Ended | None:
        return self._messages.pop(0)

    def usage(self) -> Usage:
        return Usage()

    def interrupt(self) -> None:
        """Never asked here."""

    def kill(self) -> None:
        """It is over."""


class MoodyLauncher:
    """Cannot start some models."""

    def start(self, folder: Path, order: JobOrder) -> JobProcess:
        if order.request.model in OUTCOMES:
            raise OUTCOMES[order.request.model]
        return FailedProcess()


class Floor:
    """Jobs and a supervisor that is not started yet."""

    def __init__(self, folder: Path) -> None:
        self.engine = open_database(folder / "jobs.sqlite3")
        self.jobs = JobStore(self.engine)
        layout = ImageLayout.create(folder / "store")
        signer = BundleSigner(layout, Ed25519PrivateKey.generate())
        bundles = BundleStore(self.engine, layout, folder / "reports", signer)
        settings = Settings(data=folder, poll_seconds=0.01, workers=2, max_attempts=2, lease_seconds=60)
        publisher = Publisher(self.jobs, bundles, 60)
        shop = Workshop(self.jobs, MoodyLauncher(), publisher, layout.has_blob, settings, threading.Event())
        self.supervisor = Supervisor(shop, owner="me")

    def post(self, model: str) -> str:
        job_id = self.jobs.create(PrepareRequest(model=model)).id
        self.supervisor.wake()
        return job_id

    def wait(self, job_id: str) -> JobRecord:
        end = time.monotonic() + 30
        while not (job := self.jobs.get(job_id)).status.is_terminal:
            assert time.monotonic() < end, job
            time.sleep(0.01)
        return job


@pytest.fixture
def floor(tmp_path: Path) -> Iterator[Floor]:
    floor = Floor(tmp_path)
    yield floor
    floor.supervisor.stop()
    floor.engine.dispose()


def test_a_job_that_cannot_be_started_fails_after_its_attempts_and_the_next_one_is_done(floor: Floor) -> None:
    floor.supervisor.start()
    broken, fine = floor.post("broken"), floor.post("fine")
    failed = floor.wait(broken)
    assert (failed.attempt, failed.status) == (2, JobStatus.FAILED)
    assert failed.error is not None
    assert "RuntimeError: no such program" in failed.error.message
    done = floor.wait(fine)
    assert done.error is not None
    assert done.error.type == "data-error"
    assert floor.supervisor.is_working


def test_a_full_disk_fails_the_job_with_its_own_error_at_once(floor: Floor) -> None:
    floor.supervisor.start()
    failed = floor.wait(floor.post("full"))
    assert failed.attempt == 1
    assert failed.error is not None
    assert failed.error.type == "disk-error"
    assert "free some space" in failed.error.message


def test_what_a_killed_service_left_running_is_taken_up_at_the_start(floor: Floor) -> None:
    job_id = floor.post("fine")
    floor.jobs.claim_next(owner="a service that was killed", lease_seconds=3600)
    floor.supervisor.start()
    done = floor.wait(job_id)
    assert done.attempt == 2
    assert [event.message for event in floor.jobs.events(job_id)][2] == "attempt 1 was interrupted"


def test_stopping_ends_all_workers(floor: Floor) -> None:
    floor.supervisor.start()
    assert floor.supervisor.is_working
    floor.supervisor.stop()
    assert not floor.supervisor.is_working
