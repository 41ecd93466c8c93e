"""One attempt of one job, from its claim to its end: what a worker does.

Starts the process, turns its messages into events, renews the lease, passes a cancellation or the service's stop on as
SIGTERM and, after a grace period, SIGKILL, ends what uses more than it may, and publishes the outcome. An attempt that
lost its lease kills its process and leaves everything else to the attempt that has it. Knows nothing about threads or
HTTP.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cloud_service.jobs import record
from cloud_service.jobs.faults import fault_of_signal
from cloud_service.jobs.launcher import Ended, JobProcess, Launcher
from cloud_service.jobs.limit_watch import LimitWatch
from cloud_service.jobs.limits import JobLimits
from cloud_service.jobs.messages import (
    WORKSPACE_NAME,
    Advanced,
    Failed,
    Finished,
    JobOrder,
    MemoryPlanned,
    Message,
    Noted,
    StageBegan,
)
from cloud_service.jobs.publication import Publisher
from cloud_service.jobs.record import JobRecord, Outcome, job_error
from cloud_service.jobs.store import JobStore
from cloud_service.settings import Settings
from cloud_service.sources import PINNED_COMMIT
from shared.api import JobStatus
from shared.durable_files import disk_errors

_BEATS_PER_LEASE = 4


@dataclass(frozen=True, slots=True)
class Workshop:
    """What every attempt of a service works with.

    Attributes:
        has_blob: Whether the store still has the blob of a digest.
        is_stopping: Set when the service stops.
        limits: What a job may use.
    """

    store: JobStore
    launcher: Launcher
    publisher: Publisher
    has_blob: Callable[[str], bool]
    settings: Settings
    is_stopping: threading.Event
    limits: JobLimits = field(default_factory=JobLimits)

    def folder(self, job_id: str) -> Path:
        """Return the folder of a job."""
        return self.settings.jobs / job_id


class Attempt:
    """The attempt that ``job`` was claimed for."""

    def __init__(self, job: JobRecord, shop: Workshop) -> None:
        self._job = job
        self._shop = shop
        self._outcome = job.outcome
        self._failure: Failed | None = None
        self._kill_at: float | None = None
        self._next_beat = 0.0
        self._next_look = 0.0
        self._watch = LimitWatch(shop.limits, has_workers=shop.settings.launcher == "ray", now=time.monotonic())

    def run(self) -> JobRecord:
        """Do the job as far as it goes, and return its record afterwards.

        Raises:
            LeaseLost: Another attempt has taken over.
        """
        if self._outcome is not None:
            return self._end(Ended(0))
        process = self._shop.launcher.start(self._shop.folder(self._job.id), self._order())
        try:
            return self._end(self._listen(process))
        finally:
            process.kill()

    def _listen(self, process: JobProcess) -> Ended:
        """Follow the process until it has ended."""
        while True:
            heard = process.receive(self._shop.settings.poll_seconds)
            if isinstance(heard, Ended):
                return heard
            if heard is not None:
                self._tell(heard)
            if self._outcome is not None:
                process.kill()  # all it made is on the disk, and tearing torch down can take seconds
                return Ended(0)
            self._keep_lease()
            self._stop_where_asked(process)
            if self._failure is None and (excess := self._watch.excess(process.usage, time.monotonic())) is not None:
                self._failure = Failed(error=job_error(excess))
                process.kill()

    def _tell(self, message: Message) -> None:
        attempt, now = self._job.attempt, self._shop.store.clock()
        match message:
            case StageBegan(stage=stage, total=total, unit=unit):
                self._watch.enter(stage, time.monotonic())
                self._change(
                    lambda job: record.enter_stage(job, attempt=attempt, stage=stage, total=total, unit=unit, now=now)
                )
            case MemoryPlanned(host_bytes=host_bytes):
                self._watch.plan_memory(host_bytes)
            case Advanced(done=done):
                self._change(lambda job: record.advance(job, attempt=attempt, done=done, now=now))
            case Noted(message=text):
                self._change(lambda job: record.note(job, attempt=attempt, message=text))
            case Finished(outcome=outcome):
                self._outcome = outcome
                self._change(lambda job: record.record_outcome(job, attempt=attempt, outcome=outcome))
            case Failed():
                self._failure = message

    def _keep_lease(self) -> None:
        lease_seconds, now = self._shop.settings.lease_seconds, time.monotonic()
        if now >= self._next_beat:
            self._next_beat = now + lease_seconds / _BEATS_PER_LEASE
            self._change(
                lambda job: record.heartbeat(
                    job, attempt=self._job.attempt, now=self._shop.store.clock(), lease_seconds=lease_seconds
                )
            )
        elif now >= self._next_look:
            self._next_look = now + self._shop.settings.poll_seconds
            self._job = record.check_held(self._shop.store.get(self._job.id), self._job.attempt)

    def _stop_where_asked(self, process: JobProcess) -> None:
        if self._job.status is not JobStatus.CANCELLING and not self._shop.is_stopping.is_set():
            return
        if self._kill_at is None:
            self._kill_at = time.monotonic() + self._shop.settings.cancel_grace_seconds
            process.interrupt()
        elif time.monotonic() >= self._kill_at:
            process.kill()

    def _end(self, ended: Ended) -> JobRecord:
        """Write down how the attempt ended."""
        attempt, now = self._job.attempt, self._shop.store.clock()
        if self._outcome is not None:
            folder = self._shop.folder(self._job.id)
            return self._shop.publisher.publish(self._job, self._outcome, folder)

        def end(job: JobRecord) -> JobRecord:
            if job.status is JobStatus.CANCELLING:
                return record.stop(job, attempt=attempt, now=now)
            if self._failure is not None:
                return record.fail(job, attempt=attempt, error=self._failure.error, now=now)
            if self._kill_at is not None:
                return record.release(job, attempt=attempt, message="the service stops; the job goes on later", now=now)
            if ended.exit_status < 0 and (fault := fault_of_signal(-ended.exit_status)) is not None:
                return record.fail(job, attempt=attempt, error=job_error(fault), now=now)
            limit = self._shop.settings.max_attempts
            return record.crash(job, attempt=attempt, message=str(ended), max_attempts=limit, now=now)

        return self._shop.store.change(self._job.id, end)

    def _change(self, transition: Callable[[JobRecord], JobRecord]) -> None:
        self._job = self._shop.store.change(self._job.id, transition)

    def _order(self) -> JobOrder:
        settings = self._shop.settings
        if not self._job.request.force:
            self._adopt_workspace()
        return JobOrder(
            request=self._job.request,
            model_roots=settings.model_roots,
            text_roots=settings.text_roots,
            hub_namespaces=settings.hub_namespaces,
            hub_endpoint=settings.hub_endpoint,
            hub_token=settings.hub_token_text,
            is_offline=settings.is_offline,
            max_accelerator_bytes=settings.max_accelerator_bytes,
            max_host_bytes=settings.max_host_bytes,
            launcher=settings.launcher_choice,
            prepared={} if self._job.request.force else self._prepared_before(),
            progress_seconds=settings.progress_seconds,
        )

    def _prepared_before(self) -> dict[str, Outcome]:
        """Return what the same request published before, by fingerprint, with this request's name and tag.

        A request without a name takes the one that the pipeline derived for an earlier request without one.
        """
        request, prepared = self._job.request, {}
        for earlier in self._shop.store.succeeded_with_input(self._job.input_digest):
            outcome = earlier.outcome
            has_name = request.name is not None or earlier.request.name is None
            if outcome is not None and has_name and self._shop.has_blob(outcome.manifest.digest):
                where = {"name": request.name or outcome.name, "tag": request.tag}
                prepared[outcome.fingerprint] = outcome.model_copy(update=where)
        return prepared

    def _adopt_workspace(self) -> None:
        """Take over the checkpoints of a failed or cancelled job with the same input, so that its work is not lost.

        A hub model's branch is resolved again: this is a new request, and the checkpoints serve it if it has not moved.
        """
        own = self._shop.folder(self._job.id) / WORKSPACE_NAME
        if own.exists():
            return
        for job_id in self._shop.store.unfinished_with_input(self._job.input_digest, other_than=self._job.id):
            earlier = self._shop.folder(job_id) / WORKSPACE_NAME
            if earlier.is_dir() and not earlier.is_symlink():
                with disk_errors(own):
                    own.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                    (earlier / PINNED_COMMIT).unlink(missing_ok=True)
                    shutil.move(earlier, own)
                return
