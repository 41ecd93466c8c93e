"""Jobs in the database: fencing, leases, events and idempotency keys."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cloud_service.jobs import record
from cloud_service.jobs.record import JobRecord, LeaseLost, Outcome
from cloud_service.jobs.store import Idempotency, JobStore, input_digest
from cloud_service.storage.database import open_database
from shared.api import JobResult, JobStatus, PrepareRequest, Stage
from shared.bundle.manifest import Descriptor
from shared.errors import InvalidRequest, NotFound

REQUEST = PrepareRequest(model="tiny")
DIGEST = "sha256:" + "ab" * 32
OUTCOME = Outcome(
    name="tiny",
    tag="latest",
    manifest=Descriptor(media_type="application/json", digest=DIGEST, size=2),
    size_bytes=2,
    fingerprint="f",
)


class HandClock:
    """Time that moves only when told."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def pass_seconds(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def store(tmp_path: Path, clock: HandClock) -> Iterator[JobStore]:
    engine = open_database(tmp_path / "jobs.sqlite3")
    yield JobStore(engine, clock)
    engine.dispose()


def claim(store: JobStore) -> JobRecord:
    claimed = store.claim_next(owner="me", lease_seconds=30)
    assert claimed is not None
    return claimed


def test_a_record_comes_back_from_the_database_as_it_went_in(store: JobStore, clock: HandClock) -> None:
    store.create(PrepareRequest(model="a/b", revision="v1", sparsity=0.01, name="n"))
    job = claim(store)
    store.change(
        job.id,
        lambda held: record.enter_stage(
            held, attempt=1, stage=Stage.CALIBRATING, total=9, unit="sequences", now=clock.now
        ),
    )
    written = store.change(job.id, lambda held: record.record_outcome(held, attempt=1, outcome=OUTCOME))
    assert store.get(job.id) == written
    assert written.outcome == OUTCOME
    assert written.stage is Stage.CALIBRATING


def test_jobs_are_claimed_oldest_first_and_each_once(store: JobStore) -> None:
    made = [store.create(REQUEST).id for _ in range(3)]
    assert [claim(store).id for _ in range(3)] == made
    assert store.claim_next(owner="me", lease_seconds=30) is None


def test_workers_that_race_never_claim_the_same_job(store: JobStore) -> None:
    made = {store.create(REQUEST).id for _ in range(12)}
    claimed: list[str] = []

    def work() -> None:
        while (job := store.claim_next(owner="me", lease_seconds=30)) is not None:
            claimed.append(job.id)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(claimed) == 12
    assert set(claimed) == made


def test_the_result_of_an_attempt_that_lost_its_lease_is_refused(store: JobStore, clock: HandClock) -> None:
    job_id = store.create(REQUEST).id
    old = claim(store)
    clock.pass_seconds(31)
    (abandoned,) = store.requeue_abandoned(max_attempts=5)
    assert abandoned.id == job_id
    new = claim(store)
    assert (old.attempt, new.attempt) == (1, 2)
    published: list[str] = []
    result = JobResult(name="tiny", tag="latest", digest=DIGEST, size_bytes=1)
    with pytest.raises(LeaseLost):
        store.change(
            job_id,
            lambda job: record.succeed(job, attempt=old.attempt, result=result, now=clock.now),
            with_it=lambda _connection, _job: published.append("old"),
        )
    assert published == []
    assert store.get(job_id) == new


def test_a_live_lease_is_left_alone_unless_no_owner_can_be_alive(store: JobStore, clock: HandClock) -> None:
    store.create(REQUEST)
    claim(store)
    clock.pass_seconds(29)
    assert store.requeue_abandoned(max_attempts=5) == []
    assert len(store.requeue_abandoned(max_attempts=5, is_any_lease_over=True)) == 1


@pytest.mark.parametrize("has_outcome", [True, False])
def test_however_often_the_service_is_killed_its_jobs_do_not_fail(store: JobStore, has_outcome: bool) -> None:
    job_id = store.create(REQUEST).id
    for _ in range(7):
        attempt = claim(store).attempt
        if has_outcome:
            store.change(job_id, lambda job, n=attempt: record.record_outcome(job, attempt=n, outcome=OUTCOME))  # type: ignore[misc]
        (put_back,) = store.requeue_abandoned(max_attempts=2, is_any_lease_over=True)
        assert (put_back.status, put_back.crashes) == (JobStatus.QUEUED, 0)


def test_a_lost_lease_counts_unless_the_outcome_is_known(store: JobStore, clock: HandClock) -> None:
    with_outcome, without = store.create(REQUEST).id, store.create(REQUEST).id
    claim(store), claim(store)
    store.change(with_outcome, lambda job: record.record_outcome(job, attempt=1, outcome=OUTCOME))
    clock.pass_seconds(31)
    ended = {job.id: job.status for job in store.requeue_abandoned(max_attempts=1)}
    assert ended == {with_outcome: JobStatus.QUEUED, without: JobStatus.FAILED}


def test_an_error_before_the_commit_undoes_the_transition(store: JobStore, clock: HandClock) -> None:
    job = store.create(REQUEST)

    def fail(_connection: object, _job: JobRecord) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        store.change(job.id, lambda held: record.request_cancel(held, now=clock.now), with_it=fail)
    assert store.get(job.id) == job
    assert len(store.events(job.id)) == 1


def test_a_refused_transition_leaves_no_event_behind(store: JobStore) -> None:
    job = store.create(REQUEST)
    with pytest.raises(LeaseLost):
        store.change(job.id, lambda held: record.note(held, attempt=1, message="x"))
    assert [event.id for event in store.events(job.id)] == [1]


def test_a_heartbeat_makes_no_event(store: JobStore, clock: HandClock) -> None:
    store.create(REQUEST)
    job = claim(store)
    before = len(store.events(job.id))
    store.change(job.id, lambda held: record.heartbeat(held, attempt=1, now=clock.now, lease_seconds=30))
    assert len(store.events(job.id)) == before


def test_events_after_an_id_are_the_newer_ones(store: JobStore) -> None:
    store.create(REQUEST)
    job = claim(store)
    for text in ("a", "b", "c"):
        store.change(job.id, lambda held, text=text: record.note(held, attempt=1, message=text))  # type: ignore[misc]
    assert [event.message for event in store.events(job.id, after=3)] == ["b", "c"]
    assert store.events(job.id, after=5) == []
    with pytest.raises(NotFound):
        store.events("unknown")


def test_the_same_key_and_request_give_the_same_job(store: JobStore) -> None:
    key = Idempotency("owner", "k")
    first = store.create(REQUEST, key)
    assert store.create(REQUEST, key).id == first.id
    assert store.create(REQUEST, Idempotency("other owner", "k")).id != first.id
    assert store.create(REQUEST).id != first.id


def test_the_same_key_with_another_request_is_refused(store: JobStore) -> None:
    key = Idempotency("owner", "k")
    store.create(REQUEST, key)
    with pytest.raises(InvalidRequest, match="another request") as caught:
        store.create(PrepareRequest(model="other"), key)
    assert caught.value.param == "Idempotency-Key"
    assert len(store.newest()) == 1


def test_pages_go_from_the_newest_to_the_oldest_job(store: JobStore) -> None:
    made = [store.create(REQUEST).id for _ in range(5)]
    first = [job.id for job in store.newest(limit=2)]
    assert first == [made[4], made[3]]
    assert [job.id for job in store.newest(after=first[-1], limit=9)] == [made[2], made[1], made[0]]
    claim(store)
    assert [job.id for job in store.newest(status=JobStatus.RUNNING)] == [made[0]]
    assert store.count_by_status()[JobStatus.QUEUED] == 4
    with pytest.raises(NotFound):
        store.newest(after="unknown")


def test_the_input_is_the_request_without_where_to_publish() -> None:
    same = PrepareRequest(model="tiny", name="n", tag="t", force=True)
    assert input_digest(same) == input_digest(REQUEST)
    assert input_digest(PrepareRequest(model="tiny", sparsity=0.01)) != input_digest(REQUEST)
