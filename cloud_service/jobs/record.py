"""A job's record and its transitions, as functions of values.

                     ┌────────── requeue (crash, lost lease, drain) ─────────┐
                     ▼                                                       │
    create ──▶ queued ──claim──▶ running ──outcome recorded──▶ running ──published──▶ succeeded
                     │              │ │                                      │
                     │              │ └──fail──▶ failed                      │
                     └──cancel──┐   └──cancel──▶ cancelling ──stopped──▶ cancelled
                                └───────────────────────────────────────────▶┘

Succeeded, failed and cancelled never change. A worker holds a running job by a *lease* (owner and expiry, renewed by
heartbeats). The *attempt* number rises with each claim and fences: whatever an older attempt reports is refused, so two
workers can never both publish. A crash (an end without a result or an error of ours) puts the job back in the queue;
``max_attempts`` crashes without progress in between fail it. Where the service ended, in order or not, the job is put
back too, but that counts as no crash.

The *outcome* is what a job's process produced but nobody can see yet. It is written down before it is published, so
that a service killed in between publishes it at its next start instead of running the job again.

Costs nothing. Knows nothing about databases, processes or HTTP. Every function here returns a new record.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from cloud_service.request_words import in_request_words
from shared.api import Job, JobError, JobResult, JobStatus, PrepareRequest, Progress, Stage
from shared.bundle.manifest import Descriptor
from shared.errors import Conflict, ZoError

NO_PROGRESS = Progress()
MAX_ERROR = 10_000
"""Characters of an error's message; what is longer is cut."""


class LeaseLost(Conflict):
    """The job belongs to another attempt now, or is over."""


class JobCrashed(ZoError):
    """The job's process ended too often without a result."""


class UnreadableRecord(ZoError):
    """What is stored of the job is refused by today's rules, for example a request that an older service accepted."""


class Outcome(BaseModel):
    """What a job's process produced: a bundle in the store that nothing refers to yet.

    Attributes:
        fingerprint: Identifies everything that decides the bundle's bytes; computed by the pipeline.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(max_length=255)]
    tag: Annotated[str, Field(max_length=128)]
    manifest: Descriptor
    size_bytes: Annotated[int, Field(ge=0, lt=2**53)]
    fingerprint: Annotated[str, Field(max_length=255)]


@dataclass(frozen=True, slots=True)
class JobRecord:
    """All that is known about one job.

    Attributes:
        input_digest: Digest of the request without name, tag and force.
        crashes: Attempts that ended without a result or an error of ours, since one came further than all before it.
        crashed_stage: The furthest stage in which an attempt crashed …
        crashed_done: … and how many units of it were done.
        owner: Who holds the lease; None where nobody does.
        stage_started: When this attempt began its current stage …
        stage_done_at_start: … and how many units were done then: the base of the estimate.
        last_event: Id of the newest event; ids count from 1 without holes.
        message: What the newest event says.
        owner_key: The API key that asked for the job; None for jobs of before keys were noted.
        owner_peer: The address that asked.
    """

    id: str
    request: PrepareRequest
    input_digest: str
    created: datetime
    status: JobStatus = JobStatus.QUEUED
    stage: Stage | None = None
    progress: Progress = NO_PROGRESS
    started: datetime | None = None
    finished: datetime | None = None
    estimated_finish: datetime | None = None
    attempt: int = 0
    crashes: int = 0
    crashed_stage: Stage | None = None
    crashed_done: int = 0
    owner: str | None = None
    lease_expires: datetime | None = None
    stage_started: datetime | None = None
    stage_done_at_start: int | None = None
    outcome: Outcome | None = None
    result: JobResult | None = None
    error: JobError | None = None
    last_event: int = 1
    message: str = "queued"
    owner_key: str | None = None
    owner_peer: str | None = None

    def to_message(self) -> Job:
        """Return the job as the API shows it."""
        return Job(
            id=self.id,
            status=self.status,
            stage=self.stage,
            progress=self.progress,
            created=self.created,
            started=self.started,
            finished=self.finished,
            estimated_finish=self.estimated_finish,
            attempt=self.attempt,
            input=self.request,
            result=self.result,
            error=self.error,
        )


def claim(job: JobRecord, *, owner: str, now: datetime, lease_seconds: float) -> JobRecord:
    """Give a queued job to ``owner`` as its next attempt.

    Raises:
        LeaseLost: The job is not queued any more.
    """
    if job.status is not JobStatus.QUEUED:
        raise LeaseLost(f"job {job.id} is {job.status}", needed="a queued job")
    claimed = replace(
        job,
        status=JobStatus.RUNNING,
        attempt=job.attempt + 1,
        owner=owner,
        lease_expires=now + timedelta(seconds=lease_seconds),
        started=job.started or now,
        stage_started=None,
        stage_done_at_start=None,
        estimated_finish=None,
    )
    return _told(claimed, f"attempt {claimed.attempt} started")


def heartbeat(job: JobRecord, *, attempt: int, now: datetime, lease_seconds: float) -> JobRecord:
    """Renew the lease of an attempt. Raises LeaseLost where the attempt is not the current one."""
    return replace(check_held(job, attempt), lease_expires=now + timedelta(seconds=lease_seconds))


def enter_stage(job: JobRecord, *, attempt: int, stage: Stage, total: int, unit: str, now: datetime) -> JobRecord:
    """Enter a stage. Raises LeaseLost where the attempt is not the current one."""
    entered = replace(
        check_held(job, attempt),
        stage=stage,
        progress=Progress(done=0, total=max(total, 0), unit=unit),
        stage_started=now,
        stage_done_at_start=None,
        estimated_finish=None,
    )
    return _told(entered, "")


def advance(job: JobRecord, *, attempt: int, done: int, now: datetime) -> JobRecord:
    """Note how many units of the stage are done. Raises LeaseLost where the attempt is not the current one."""
    check_held(job, attempt)
    total = job.progress.total
    progress = job.progress.model_copy(update={"done": min(done, total) if total else done})
    if job.stage_done_at_start is None:
        # The first report of a stage is where a resumed stage starts: the rate is measured from here.
        return _told(replace(job, progress=progress, stage_started=now, stage_done_at_start=progress.done), "")
    return _told(replace(job, progress=progress, estimated_finish=_estimate(job, progress, now)), "")


def note(job: JobRecord, *, attempt: int, message: str) -> JobRecord:
    """Record something a person should know. Raises LeaseLost where the attempt is not the current one."""
    return _told(check_held(job, attempt), message)


def record_outcome(job: JobRecord, *, attempt: int, outcome: Outcome) -> JobRecord:
    """Write down what the job's process produced. Raises LeaseLost where the attempt is not the current one."""
    return replace(check_held(job, attempt), outcome=outcome)


def succeed(job: JobRecord, *, attempt: int, result: JobResult, now: datetime) -> JobRecord:
    """End the job with a published bundle. Raises LeaseLost where the attempt may not publish (any more)."""
    if check_held(job, attempt).status is not JobStatus.RUNNING:
        raise LeaseLost(f"job {job.id} is {job.status}", needed="a running job")
    return _over(replace(job, status=JobStatus.SUCCEEDED, result=result), now, f"published {result.digest}")


def fail(job: JobRecord, *, attempt: int, error: JobError, now: datetime) -> JobRecord:
    """End the job with an error. Raises LeaseLost where the attempt is not the current one."""
    check_held(job, attempt)
    return _over(replace(job, status=JobStatus.FAILED, error=error), now, error.message)


def request_cancel(job: JobRecord, *, now: datetime) -> JobRecord:
    """Ask a job to stop: a queued one is over at once, a running one when its process ended; else nothing changes."""
    if job.status is JobStatus.QUEUED:
        return _over(replace(job, status=JobStatus.CANCELLED), now, "cancelled before it started")
    if job.status is JobStatus.RUNNING:
        return _told(replace(job, status=JobStatus.CANCELLING), "cancelling")
    return job


def stop(job: JobRecord, *, attempt: int, now: datetime) -> JobRecord:
    """End a cancelling job. Raises LeaseLost where the attempt is not the current one."""
    check_held(job, attempt)
    return _over(replace(job, status=JobStatus.CANCELLED), now, "cancelled")


def release(job: JobRecord, *, attempt: int, message: str, now: datetime) -> JobRecord:
    """Give a job back unfinished because the service stops or was killed; counts as no crash.

    Raises:
        LeaseLost: The attempt is not the current one.
    """
    check_held(job, attempt)
    if job.status is JobStatus.CANCELLING:
        return stop(job, attempt=attempt, now=now)
    return _told(_unowned(replace(job, status=JobStatus.QUEUED)), message)


def crash(job: JobRecord, *, attempt: int, message: str, max_attempts: int, now: datetime) -> JobRecord:
    """Count a crash: the job goes back to the queue, or fails where it crashed too often.

    The count begins anew where this attempt came further than every attempt that crashed before it.

    Raises:
        LeaseLost: The attempt is not the current one.
    """
    check_held(job, attempt)
    if job.status is JobStatus.CANCELLING:
        return stop(job, attempt=attempt, now=now)
    if _place(job.stage, job.progress.done) > _place(job.crashed_stage, job.crashed_done):
        job = replace(job, crashes=0, crashed_stage=job.stage, crashed_done=job.progress.done)
    crashed = replace(job, crashes=job.crashes + 1)
    if crashed.crashes >= max_attempts:
        error = JobCrashed(
            message,
            needed=f"an attempt that ends by itself or comes further; {crashed.crashes} did not",
            next_step=f"POST the same request again; the operator finds more in jobs/{job.id}/log.txt",
        )
        return _over(replace(crashed, status=JobStatus.FAILED, error=job_error(error)), now, message)
    return _told(_unowned(replace(crashed, status=JobStatus.QUEUED)), message)


def check_held(job: JobRecord, attempt: int) -> JobRecord:
    """Return the job where ``attempt`` is the one that may change it.

    Raises:
        LeaseLost: It is not.
    """
    if job.attempt != attempt or job.status not in (JobStatus.RUNNING, JobStatus.CANCELLING):
        raise LeaseLost(
            f"attempt {attempt} of job {job.id}, which is {job.status} with attempt {job.attempt}",
            needed="the current attempt of a running job",
        )
    return job


def job_error(error: ZoError) -> JobError:
    """Return what a failed job tells of an error, to somebody who sent a request and typed no options."""
    return JobError(type=error.slug, message=printable(in_request_words(error.http_text), MAX_ERROR), param=error.param)


def printable(text: str, length: int) -> str:
    """Return the text as it can be stored and shown: cut to length, lone surrogates and control characters replaced."""
    cut = text[:length].encode(errors="replace").decode()
    return "".join(
        character if character.isprintable() or character in "\n\t" else "\N{REPLACEMENT CHARACTER}"
        for character in cut
    )


def is_abandoned(job: JobRecord, now: datetime) -> bool:
    """Whether the lease of a running job has expired."""
    is_held = job.status in (JobStatus.RUNNING, JobStatus.CANCELLING)
    return is_held and (job.lease_expires is None or job.lease_expires <= now)


def _place(stage: Stage | None, done: int) -> tuple[int, int]:
    """Return how far a job is, as something that can be compared."""
    return (-1 if stage is None else list(Stage).index(stage), done)


def _estimate(job: JobRecord, progress: Progress, now: datetime) -> datetime | None:
    """Extrapolate the current stage's rate in this attempt; later stages are not included."""
    gained = progress.done - (job.stage_done_at_start or 0)
    if job.stage_started is None or gained <= 0 or not progress.total:
        return None
    return now + (now - job.stage_started) / gained * (progress.total - progress.done)


def _over(job: JobRecord, now: datetime, message: str) -> JobRecord:
    return _told(_unowned(replace(job, finished=now)), message)


def _unowned(job: JobRecord) -> JobRecord:
    return replace(job, owner=None, lease_expires=None, estimated_finish=None)


def _told(job: JobRecord, message: str) -> JobRecord:
    return replace(job, last_event=job.last_event + 1, message=message)
