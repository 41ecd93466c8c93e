"""What a worker does with one attempt, over a launcher in memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloud_service.jobs import record
from cloud_service.jobs.attempt import Attempt, Workshop
from cloud_service.jobs.launcher import Ended, JobProcess
from cloud_service.jobs.limits import Usage
from cloud_service.jobs.messages import Advanced, Failed, JobOrder, Message, Noted, StageBegan
from cloud_service.jobs.publication import Publisher
from cloud_service.jobs.record import JobRecord, LeaseLost
from cloud_service.jobs.store import JobStore, utc_now
from cloud_service.settings import Settings
from cloud_service.storage.bundles import BundleStore
from cloud_service.storage.database import open_database
from cloud_service.storage.signing import BundleSigner
from shared.api import JobError, JobStatus, PrepareRequest, Stage
from shared.bundle.layout import ImageLayout

Step = Message | Ended | Callable[[], None]


class ScriptedProcess:
    """Says what it was told to say; a function in the script is called instead, and says nothing."""

    def __init__(self, script: list[Step]) -> None:
        self._script = script
        self.signals: list[str] = []
        self.used = Usage()

    def receive(self, timeout_seconds: float) -> Message | Ended | None:
        step = self._script.pop(0)
        if callable(step):
            step()
            return None
        return step

    def usage(self) -> Usage:
        return self.used

    def interrupt(self) -> None:
        self.signals.append("SIGTERM")

    def kill(self) -> None:
        self.signals.append("SIGKILL")


class ScriptedLauncher:
    """Starts one scripted process and remembers the order."""

    def __init__(self, script: list[Step]) -> None:
        self.process = ScriptedProcess(script)
        self.order: JobOrder | None = None

    def start(self, folder: Path, order: JobOrder) -> JobProcess:
        self.order = order
        return self.process


class Bench:
    """A database with one claimed job."""

    def __init__(self, folder: Path) -> None:
        self.engine = open_database(folder / "jobs.sqlite3")
        self.store = JobStore(self.engine)
        self.is_stopping = threading.Event()
        self.settings = Settings(data=folder, cancel_grace_seconds=0, poll_seconds=0.001, lease_seconds=0.004)
        layout = ImageLayout.create(folder / "store")
        signer = BundleSigner(layout, Ed25519PrivateKey.generate())
        self.bundles = BundleStore(self.engine, layout, folder / "reports", signer)
        self.job = self.claim(PrepareRequest(model="tiny"))

    def claim(self, request: PrepareRequest) -> JobRecord:
        self.store.create(request)
        claimed = self.store.claim_next(owner="me", lease_seconds=60)
        assert claimed is not None
        return claimed

    def attempt(self, launcher: ScriptedLauncher) -> Attempt:
        publisher = Publisher(self.store, self.bundles, 30)
        has_blob = self.bundles.layout.has_blob
        shop = Workshop(self.store, launcher, publisher, has_blob, self.settings, self.is_stopping)
        return Attempt(self.job, shop)

    def cancel(self) -> None:
        self.store.change(self.job.id, lambda job: record.request_cancel(job, now=utc_now()))

    def take_over(self) -> None:
        self.store.requeue_abandoned(max_attempts=5, is_any_lease_over=True)
        self.store.claim_next(owner="you", lease_seconds=60)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.engine.dispose()


def test_messages_become_events(bench: Bench) -> None:
    script: list[Step] = [
        StageBegan(stage=Stage.CALIBRATING, total=4, unit="sequences"),
        Advanced(done=2),
        Noted(message="resumed"),
        Failed(error=JobError(type="data-error", message="no text", param="calibration.text")),
        Ended(9),
    ]
    ended = bench.attempt(ScriptedLauncher(script)).run()
    assert ended.status is JobStatus.FAILED
    assert ended.error == JobError(type="data-error", message="no text", param="calibration.text")
    told = [(event.stage, event.progress.done, event.message) for event in bench.store.events(bench.job.id, after=2)]
    assert told == [
        (Stage.CALIBRATING, 0, ""),
        (Stage.CALIBRATING, 2, ""),
        (Stage.CALIBRATING, 2, "resumed"),
        (Stage.CALIBRATING, 2, "no text"),
    ]


def test_an_end_without_a_result_is_a_crash_that_names_the_signal(bench: Bench) -> None:
    queued = bench.attempt(ScriptedLauncher([Ended(-9)])).run()
    assert (queued.status, queued.crashes) == (JobStatus.QUEUED, 1)
    assert queued.message == "the job's process was ended by SIGKILL"


def test_an_end_by_a_signal_that_would_come_again_fails_the_job_at_once(bench: Bench) -> None:
    failed = bench.attempt(ScriptedLauncher([Ended(-6, "memory allocation failed")])).run()
    assert (failed.status, failed.attempt) == (JobStatus.FAILED, 1)
    assert failed.error is not None
    assert failed.error.type == "preparation-fault"


def test_an_attempt_that_uses_too_much_is_killed_and_fails_with_the_reason(bench: Bench) -> None:
    launcher = ScriptedLauncher([Noted(message="busy"), Ended(-9)])
    launcher.process.used = Usage(tasks=5000)
    failed = bench.attempt(launcher).run()
    assert (failed.status, failed.attempt) == (JobStatus.FAILED, 1)
    assert failed.error is not None
    assert "5000 processes and threads" in failed.error.message
    assert launcher.process.signals[0] == "SIGKILL"


def test_an_attempt_that_lost_its_lease_kills_its_process(bench: Bench) -> None:
    launcher = ScriptedLauncher([bench.take_over, Advanced(done=1)])
    with pytest.raises(LeaseLost):
        bench.attempt(launcher).run()
    assert launcher.process.signals == ["SIGKILL"]
    assert bench.store.get(bench.job.id).attempt == 2


def test_a_cancellation_is_passed_on_as_sigterm_then_sigkill(bench: Bench) -> None:
    launcher = ScriptedLauncher([bench.cancel, *[Noted(message="busy")] * 3, Ended(-9)])
    assert bench.attempt(launcher).run().status is JobStatus.CANCELLED
    assert launcher.process.signals[:2] == ["SIGTERM", "SIGKILL"]


def test_the_stop_of_the_service_puts_the_job_back_without_a_crash(bench: Bench) -> None:
    launcher = ScriptedLauncher([bench.is_stopping.set, Ended(130)])
    released = bench.attempt(launcher).run()
    assert (released.status, released.crashes) == (JobStatus.QUEUED, 0)
    assert launcher.process.signals[0] == "SIGTERM"


def test_the_checkpoints_of_a_cancelled_job_are_adopted_unless_force_asks_for_new_ones(bench: Bench) -> None:
    checkpoint = bench.settings.jobs / bench.job.id / "workspace" / "fisher"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    checkpoint.with_name("commit.json").touch()
    bench.cancel()
    bench.attempt(ScriptedLauncher([Ended(0)])).run()

    for is_forced in (True, False):
        bench.job = bench.claim(PrepareRequest(model="tiny", force=is_forced))
        bench.attempt(ScriptedLauncher([Ended(1)])).run()
        adopted = bench.settings.jobs / bench.job.id / "workspace" / "fisher"
        assert adopted.exists() is not is_forced
        assert not adopted.with_name("commit.json").exists()  # a new request asks the hub again
        bench.cancel()


def test_the_hubs_settings_reach_the_order_and_the_token_not_its_text(bench: Bench) -> None:
    bench.settings = Settings(data=bench.settings.data, hub_token="hf_secret", hub_namespaces=("Qwen/*",))
    launcher = ScriptedLauncher([Ended(0)])
    bench.attempt(launcher).run()
    assert launcher.order is not None
    assert launcher.order.hub_token == "hf_secret"
    assert launcher.order.hub_namespaces == ("Qwen/*",)
    assert "hf_secret" not in repr(launcher.order)
