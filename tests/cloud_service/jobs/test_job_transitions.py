"""The transitions of a job, as functions of values."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from cloud_service.jobs import record
from cloud_service.jobs.record import JobRecord, LeaseLost
from shared.api import JobError, JobResult, JobStatus, PrepareRequest, Stage

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
RESULT = JobResult(name="tiny", tag="latest", digest="sha256:" + "0" * 64, size_bytes=1)


def after(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


@pytest.fixture
def queued() -> JobRecord:
    return JobRecord(id="j", request=PrepareRequest(model="tiny"), input_digest="sha256:0", created=NOON)


@pytest.fixture
def running(queued: JobRecord) -> JobRecord:
    return record.claim(queued, owner="me", now=NOON, lease_seconds=30)


def test_a_claim_raises_the_attempt_and_sets_the_lease(running: JobRecord) -> None:
    assert (running.status, running.attempt, running.owner) == (JobStatus.RUNNING, 1, "me")
    assert running.lease_expires == after(30)
    assert running.last_event == 2


def test_only_a_queued_job_can_be_claimed(running: JobRecord) -> None:
    with pytest.raises(LeaseLost, match="a queued job"):
        record.claim(running, owner="you", now=NOON, lease_seconds=30)


def test_a_lease_is_over_at_its_expiry_and_not_before(running: JobRecord) -> None:
    assert not record.is_abandoned(running, after(29.9))
    assert record.is_abandoned(running, after(30))
    renewed = record.heartbeat(running, attempt=1, now=after(20), lease_seconds=30)
    assert not record.is_abandoned(renewed, after(49))


def test_an_old_attempt_can_change_nothing(running: JobRecord) -> None:
    put_back = record.crash(running, attempt=1, message="gone", max_attempts=5, now=NOON)
    second = record.claim(put_back, owner="you", now=NOON, lease_seconds=30)
    error = JobError(type="t", message="m")
    for refused in (
        lambda: record.heartbeat(second, attempt=1, now=NOON, lease_seconds=30),
        lambda: record.enter_stage(second, attempt=1, stage=Stage.RESOLVING, total=1, unit="", now=NOON),
        lambda: record.advance(second, attempt=1, done=1, now=NOON),
        lambda: record.note(second, attempt=1, message=""),
        lambda: record.succeed(second, attempt=1, result=RESULT, now=NOON),
        lambda: record.fail(second, attempt=1, error=error, now=NOON),
        lambda: record.crash(second, attempt=1, message="", max_attempts=5, now=NOON),
        lambda: record.release(second, attempt=1, message="", now=NOON),
        lambda: record.stop(second, attempt=1, now=NOON),
    ):
        with pytest.raises(LeaseLost):
            refused()


@pytest.mark.parametrize("status", [JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED])
def test_a_terminal_state_never_changes(running: JobRecord, status: JobStatus) -> None:
    ends = {
        JobStatus.SUCCEEDED: record.succeed(running, attempt=1, result=RESULT, now=NOON),
        JobStatus.FAILED: record.fail(running, attempt=1, error=JobError(type="t", message="m"), now=NOON),
        JobStatus.CANCELLED: record.stop(running, attempt=1, now=NOON),
    }
    over = ends[status]
    assert over.status is status
    assert over.finished == NOON
    assert over.owner is None
    assert record.request_cancel(over, now=NOON) == over
    with pytest.raises(LeaseLost):
        record.advance(over, attempt=1, done=1, now=NOON)
    with pytest.raises(LeaseLost):
        record.claim(over, owner="me", now=NOON, lease_seconds=1)


def test_cancelling_a_queued_job_ends_it_and_a_running_one_asks_it(queued: JobRecord, running: JobRecord) -> None:
    assert record.request_cancel(queued, now=NOON).status is JobStatus.CANCELLED
    asked = record.request_cancel(running, now=NOON)
    assert asked.status is JobStatus.CANCELLING
    assert record.request_cancel(asked, now=NOON) == asked


def test_a_job_that_is_being_cancelled_cannot_succeed_any_more(running: JobRecord) -> None:
    asked = record.request_cancel(running, now=NOON)
    with pytest.raises(LeaseLost, match="cancelling"):
        record.succeed(asked, attempt=1, result=RESULT, now=NOON)


def test_a_crash_or_a_drain_while_cancelling_is_the_cancellation(running: JobRecord) -> None:
    asked = record.request_cancel(running, now=NOON)
    assert record.crash(asked, attempt=1, message="", max_attempts=5, now=NOON).status is JobStatus.CANCELLED
    assert record.release(asked, attempt=1, message="", now=NOON).status is JobStatus.CANCELLED


def test_the_fifth_of_five_crashes_fails_the_job(queued: JobRecord) -> None:
    job = queued
    for _ in range(4):
        held = record.claim(job, owner="me", now=NOON, lease_seconds=1)
        job = record.crash(held, attempt=held.attempt, message="SIGKILL", max_attempts=5, now=NOON)
        assert job.status is JobStatus.QUEUED
    held = record.claim(job, owner="me", now=NOON, lease_seconds=1)
    failed = record.crash(held, attempt=5, message="SIGKILL", max_attempts=5, now=NOON)
    assert failed.status is JobStatus.FAILED
    assert failed.error is not None
    assert failed.error.type == "job-crashed"


def crashed_at(job: JobRecord, stage: Stage, done: int) -> JobRecord:
    held = record.claim(job, owner="me", now=NOON, lease_seconds=1)
    attempt = held.attempt
    held = record.enter_stage(held, attempt=attempt, stage=stage, total=9, unit="", now=NOON)
    held = record.advance(held, attempt=attempt, done=done, now=NOON)
    return record.crash(held, attempt=attempt, message="SIGKILL", max_attempts=2, now=NOON)


def test_crashes_are_counted_anew_after_progress(queued: JobRecord) -> None:
    job = queued
    for stage, done in [(Stage.CALIBRATING, 3), (Stage.CALIBRATING, 4), (Stage.QUANTIZING, 0), (Stage.QUANTIZING, 1)]:
        job = crashed_at(job, stage, done)
        assert (job.status, job.crashes) == (JobStatus.QUEUED, 1)


@pytest.mark.parametrize("place", [(Stage.QUANTIZING, 1), (Stage.QUANTIZING, 0), (Stage.CALIBRATING, 9)])
def test_a_place_that_was_reached_before_is_no_progress(queued: JobRecord, place: tuple[Stage, int]) -> None:
    job = crashed_at(queued, Stage.QUANTIZING, 1)
    assert crashed_at(job, *place).status is JobStatus.FAILED


def test_a_drain_counts_as_no_crash(running: JobRecord) -> None:
    released = record.release(running, attempt=1, message="the service stops", now=NOON)
    assert (released.status, released.crashes, released.owner) == (JobStatus.QUEUED, 0, None)


def test_the_estimate_extrapolates_the_rate_since_the_first_report_of_the_stage(running: JobRecord) -> None:
    job = record.enter_stage(running, attempt=1, stage=Stage.CALIBRATING, total=100, unit="sequences", now=after(0))
    resumed = record.advance(job, attempt=1, done=40, now=after(10))
    assert resumed.estimated_finish is None
    # 20 units in 30 s, 40 units left: 60 s more.
    later = record.advance(resumed, attempt=1, done=60, now=after(40))
    assert later.estimated_finish == after(100)
    assert later.progress.model_dump() == {"done": 60, "total": 100, "unit": "sequences"}


def test_progress_beyond_the_total_is_shown_as_the_total(running: JobRecord) -> None:
    job = record.enter_stage(running, attempt=1, stage=Stage.CALIBRATING, total=10, unit="", now=NOON)
    assert record.advance(job, attempt=1, done=11, now=NOON).progress.done == 10


def test_without_a_total_there_is_no_estimate(running: JobRecord) -> None:
    job = record.enter_stage(running, attempt=1, stage=Stage.DOWNLOADING, total=0, unit="bytes", now=NOON)
    for seconds in (1, 2, 3):
        job = record.advance(job, attempt=1, done=seconds, now=after(seconds))
    assert job.estimated_finish is None
    assert job.progress.done == 3
