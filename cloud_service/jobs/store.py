"""Jobs and their events in the database.

Every change is one transaction: read the record, apply a transition of ``record`` (which may refuse it), write the
record and, where the transition says something, the event it told. So events count from 1 without holes and a refused
transition leaves no trace.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from cloud_service.jobs.record import JobRecord, claim, crash, fail, is_abandoned, release
from cloud_service.jobs.rows import event_of_row, record_of_row, row_of_record
from cloud_service.storage.database import events, jobs, reading, writing
from cloud_service.storage.disk_reserve import DiskReserve
from shared.api import JobEvent, JobStatus, PrepareRequest
from shared.bundle.digest import digest_of_bytes
from shared.errors import DiskError, InvalidRequest, NotFound, ZoError

Transition = Callable[[JobRecord], JobRecord]
Clock = Callable[[], datetime]

_HELD = (JobStatus.RUNNING, JobStatus.CANCELLING)
_ENDING = (JobStatus.CANCELLING, JobStatus.CANCELLED, JobStatus.FAILED)
"""States that free something when they are written down."""


def utc_now() -> datetime:
    """Return the time, aware, in UTC."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Idempotency:
    """An ``Idempotency-Key`` and whose it is: two owners' equal keys have nothing to do with each other."""

    owner: str
    key: str


class QuotaExceeded(ZoError):
    """The caller has as many jobs waiting as one key may have."""

    status = 429


class JobStore:
    """The jobs of one service.

    Args:
        engine: The database.
        clock: Tells the time.
        reserve: What is given up on a full disk, so that a job can still be ended.
    """

    def __init__(self, engine: sa.Engine, clock: Clock = utc_now, reserve: DiskReserve | None = None) -> None:
        self._engine = engine
        self.clock = clock
        self._reserve = reserve

    def create(
        self,
        request: PrepareRequest,
        idempotency: Idempotency | None = None,
        *,
        owner_key: str | None = None,
        owner_peer: str | None = None,
        max_queued: int | None = None,
    ) -> JobRecord:
        """Queue a job and return it, or the job that the same key and request made before.

        Args:
            request: What to prepare.
            idempotency: What makes a repeated request harmless.
            owner_key: The API key that asks; its rights decide again when the bundle is published.
            owner_peer: The address that asks.
            max_queued: Queued jobs that this API key may have, the new one included; None sets no limit.

        Raises:
            InvalidRequest: The idempotency key was used with another request.
            QuotaExceeded: ``owner_key`` has ``max_queued`` jobs waiting.
        """
        body_digest = _digest(request.model_dump(mode="json"))
        with writing(self._engine) as connection:
            if idempotency is not None and (known := _find_by_key(connection, idempotency)) is not None:
                return _same_request(known, body_digest, idempotency)
            if max_queued is not None:
                _check_quota(connection, owner_key, max_queued)
            job = JobRecord(
                id=secrets.token_hex(12),
                request=request,
                input_digest=input_digest(request),
                created=self.clock(),
                owner_key=owner_key,
                owner_peer=owner_peer,
            )
            origin = {
                "idempotency_owner": idempotency and idempotency.owner,
                "idempotency_key": idempotency and idempotency.key,
                "body_digest": body_digest,
            }
            connection.execute(sa.insert(jobs).values(**row_of_record(job), **origin))
            _insert_event(connection, job, self.clock())
            return job

    def get(self, job_id: str) -> JobRecord:
        """Return a job.

        Raises:
            NotFound: There is no such job.
        """
        with reading(self._engine) as connection:
            return _load(connection, job_id)

    def newest(self, *, status: JobStatus | None = None, after: str | None = None, limit: int = 50) -> list[JobRecord]:
        """Return up to ``limit`` jobs, newest first.

        Raises:
            NotFound: ``after`` is no job.
        """
        query = sa.select(jobs).order_by(jobs.c.sequence.desc()).limit(limit)
        if status is not None:
            query = query.where(jobs.c.status == status)
        with reading(self._engine) as connection:
            if after is not None:
                _load(connection, after)
                position = sa.select(jobs.c.sequence).where(jobs.c.id == after).scalar_subquery()
                query = query.where(jobs.c.sequence < position)
            return [record_of_row(row) for row in connection.execute(query)]

    def events(self, job_id: str, *, after: int = 0) -> list[JobEvent]:
        """Return a job's events with ids above ``after``, oldest first.

        Raises:
            NotFound: There is no such job.
        """
        query = sa.select(events).where(events.c.job_id == job_id, events.c.id > after).order_by(events.c.id)
        with reading(self._engine) as connection:
            found = [event_of_row(row) for row in connection.execute(query)]
            if not found:
                _load(connection, job_id)
            return found

    def change(
        self,
        job_id: str,
        transition: Transition,
        *,
        with_it: Callable[[sa.Connection, JobRecord], object] | None = None,
    ) -> JobRecord:
        """Apply a transition and return the new record.

        Args:
            job_id: The job.
            transition: Returns the new record, or raises to change nothing.
            with_it: Writes what belongs to the new record in the same transaction; an error in it undoes both.

        Raises:
            NotFound: There is no such job.
            LeaseLost: The transition refuses.
            DiskError: The disk is full, and the transition does not end the job or the reserve is used up.
        """
        while True:
            changed: JobRecord | None = None
            try:
                with writing(self._engine) as connection:
                    job = _load(connection, job_id)
                    changed = transition(job)
                    _save(connection, job, changed, self.clock())
                    if with_it is not None:
                        with_it(connection, changed)
                    return changed
            except DiskError:
                is_ending = changed is not None and changed.status in _ENDING
                if not is_ending or self._reserve is None or not self._reserve.give():
                    raise

    def claim_next(self, *, owner: str, lease_seconds: float) -> JobRecord | None:
        """Give the oldest queued job to ``owner`` and return it, or None where none waits; unreadable ones fail."""
        oldest = sa.select(jobs).where(jobs.c.status == JobStatus.QUEUED).order_by(jobs.c.sequence).limit(1)
        with writing(self._engine) as connection:
            while (row := connection.execute(oldest).one_or_none()) is not None:
                job, now = record_of_row(row), self.clock()
                claimed = claim(job, owner=owner, now=now, lease_seconds=lease_seconds)
                _save(connection, job, claimed, now)
                if job.error is None:
                    return claimed
                _save(connection, claimed, fail(claimed, attempt=claimed.attempt, error=job.error, now=now), now)
        return None

    def requeue_abandoned(self, *, max_attempts: int, is_any_lease_over: bool = False) -> list[JobRecord]:
        """Put back each running job whose lease has expired, and return these jobs.

        It counts as a crash, but for two cases: the service itself was killed, or the attempt has its outcome and only
        the publication is left.

        Args:
            max_attempts: Crashes after which a job fails.
            is_any_lease_over: Whether no owner of a lease can be alive: a service that starts is alone on its data.
        """
        held = sa.select(jobs).where(jobs.c.status.in_(_HELD))
        abandoned = []
        with writing(self._engine) as connection:
            now = self.clock()
            for job in map(record_of_row, connection.execute(held).all()):
                if is_any_lease_over or is_abandoned(job, now):
                    attempt, message = job.attempt, f"attempt {job.attempt} was interrupted"
                    if is_any_lease_over or job.outcome is not None:
                        changed = release(job, attempt=attempt, message=message, now=now)
                    else:
                        changed = crash(job, attempt=attempt, message=message, max_attempts=max_attempts, now=now)
                    _save(connection, job, changed, now)
                    abandoned.append(changed)
        return abandoned

    def succeeded_with_input(self, digest: str) -> list[JobRecord]:
        """Return the succeeded jobs with that input, oldest first."""
        query = (
            sa.select(jobs)
            .where(jobs.c.input_digest == digest, jobs.c.status == JobStatus.SUCCEEDED)
            .order_by(jobs.c.sequence)
        )
        with reading(self._engine) as connection:
            return [record_of_row(row) for row in connection.execute(query)]

    def unfinished_with_input(self, digest: str, *, other_than: str) -> list[str]:
        """Return the ids of failed and cancelled jobs with that input, newest first."""
        query = (
            sa.select(jobs.c.id)
            .where(jobs.c.input_digest == digest, jobs.c.id != other_than)
            .where(jobs.c.status.in_((JobStatus.FAILED, JobStatus.CANCELLED)))
            .order_by(jobs.c.sequence.desc())
        )
        with reading(self._engine) as connection:
            return list(connection.scalars(query))

    def count_by_status(self) -> dict[JobStatus, int]:
        """Return how many jobs are in each state."""
        query = sa.select(jobs.c.status, sa.func.count().label("number")).group_by(jobs.c.status)
        with reading(self._engine) as connection:
            counted = {row.status: row.number for row in connection.execute(query)}
        return {status: counted.get(status, 0) for status in JobStatus}


def input_digest(request: PrepareRequest) -> str:
    """Return the digest of everything in a request that decides the bundle's content."""
    return _digest(request.model_dump(mode="json", exclude={"name", "tag", "force"}))


def _digest(document: object) -> str:
    return digest_of_bytes(json.dumps(document, sort_keys=True, separators=(",", ":")).encode())


def _check_quota(connection: sa.Connection, owner_key: str | None, max_queued: int) -> None:
    waiting = (
        sa.select(sa.func.count())
        .select_from(jobs)
        .where(jobs.c.status == JobStatus.QUEUED, jobs.c.owner_key == owner_key)
    )
    queued = connection.execute(waiting).scalar_one()
    if queued >= max_queued:
        raise QuotaExceeded(
            f"{queued} queued jobs of key {owner_key}",
            needed=f"fewer than {max_queued}",
            next_step="wait until some have started, or cancel one: POST /v1/jobs/{id}/cancel",
        )


def _find_by_key(connection: sa.Connection, idempotency: Idempotency) -> sa.Row[Any] | None:
    return connection.execute(
        sa.select(jobs).where(jobs.c.idempotency_owner == idempotency.owner, jobs.c.idempotency_key == idempotency.key)
    ).one_or_none()


def _same_request(row: sa.Row[Any], body_digest: str, idempotency: Idempotency) -> JobRecord:
    if row.body_digest != body_digest:
        raise InvalidRequest(
            f"Idempotency-Key {idempotency.key!r} with another request than job {row.id}'s",
            needed="the same request, or another key",
            next_step="send a new Idempotency-Key for a new request",
            param="Idempotency-Key",
        )
    return record_of_row(row)


def _load(connection: sa.Connection, job_id: str) -> JobRecord:
    row = connection.execute(sa.select(jobs).where(jobs.c.id == job_id)).one_or_none()
    if row is None:
        raise NotFound(f"no job {job_id[:80]!r}", next_step="list the jobs: GET /v1/jobs")
    return record_of_row(row)


def _save(connection: sa.Connection, old: JobRecord, new: JobRecord, now: datetime) -> None:
    changed = {name: value for name, value in row_of_record(new).items() if name != "request"}  # which never changes
    connection.execute(sa.update(jobs).where(jobs.c.id == old.id).values(**changed))
    if new.last_event != old.last_event:
        _insert_event(connection, new, now)


def _insert_event(connection: sa.Connection, job: JobRecord, now: datetime) -> None:
    row = row_of_record(job)
    shown = {name: row[name] for name in ("status", "stage", "progress", "message")}
    connection.execute(sa.insert(events).values(job_id=job.id, id=job.last_event, at=now, **shown))
