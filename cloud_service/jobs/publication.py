"""Turns a job's outcome into a published bundle, exactly once.

    adopt · validate (nothing visible) → [ fence · bundle, tag, signature and audit row · job succeeded ]

The bracket is one transaction of the database: all of it happens or nothing. Killed before its commit, the job is still
running with its outcome written down, and the next start repeats the bracket.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import sqlalchemy as sa

from cloud_service.jobs.adoption import adopt_bundle
from cloud_service.jobs.messages import REPORT_NAME, STORE_NAME, WORKSPACE_NAME
from cloud_service.jobs.record import JobRecord, LeaseLost, Outcome, fail, heartbeat, job_error, stop, succeed
from cloud_service.jobs.store import JobStore
from cloud_service.jobs.untrusted_files import read_untrusted
from cloud_service.storage.audit import Author
from cloud_service.storage.bundles import BundleStore
from shared.api import JobResult, JobStatus
from shared.errors import ZoError

_VALIDATED_BYTES_PER_SECOND = 20e6
_MAX_REPORT_BYTES = 64 * 1024 * 1024


class Publisher:
    """Publishes the outcomes of jobs.

    Args:
        store: The jobs.
        bundles: Where to publish.
        lease_seconds: Lease for the publication, besides what validating the bundle's bytes takes.
    """

    def __init__(self, store: JobStore, bundles: BundleStore, lease_seconds: float) -> None:
        self._store = store
        self._bundles = bundles
        self._lease_seconds = lease_seconds

    def publish(self, job: JobRecord, outcome: Outcome, folder: Path) -> JobRecord:
        """Publish the outcome of an attempt and end the job: succeeded, cancelled where that was asked, or failed.

        Args:
            job: The job as its attempt knows it.
            outcome: What the attempt produced.
            folder: The job's folder.

        Raises:
            LeaseLost: Another attempt has taken over; nothing was published.
        """
        attempt, clock = job.attempt, self._store.clock
        lease = self._lease_seconds + outcome.size_bytes / _VALIDATED_BYTES_PER_SECOND
        self._store.change(job.id, lambda now: heartbeat(now, attempt=attempt, now=clock(), lease_seconds=lease))
        try:
            ended = self._publish(job, outcome, folder)
        except LeaseLost:
            raise
        except ZoError as error:
            reason = job_error(error)
            return self._store.change(job.id, lambda now: fail(now, attempt=attempt, error=reason, now=clock()))
        if ended.status is JobStatus.SUCCEEDED:
            shutil.rmtree(folder / WORKSPACE_NAME, ignore_errors=True)
        return ended

    def _publish(self, job: JobRecord, outcome: Outcome, folder: Path) -> JobRecord:
        digest, clock = outcome.manifest.digest, self._store.clock
        adopt_bundle(folder, f"{WORKSPACE_NAME}/{STORE_NAME}", outcome.manifest, self._bundles.layout)
        bundle = self._bundles.validate(outcome.manifest)
        with contextlib.suppress(FileNotFoundError):  # the input was prepared before, with its report
            page = read_untrusted(folder, f"{WORKSPACE_NAME}/{REPORT_NAME}", max_bytes=_MAX_REPORT_BYTES)
            self._bundles.add_report(digest, page)
        name, tag = job.request.name or outcome.name, job.request.tag  # not where the job's process would like it
        result = JobResult(name=name, tag=tag, digest=digest, size_bytes=outcome.size_bytes)
        author = Author(key_id=job.owner_key, peer=job.owner_peer, job_id=job.id)

        def end(current: JobRecord) -> JobRecord:
            if current.status is JobStatus.CANCELLING:
                return stop(current, attempt=job.attempt, now=clock())
            return succeed(current, attempt=job.attempt, result=result, now=clock())

        def publish(connection: sa.Connection, ended: JobRecord) -> None:
            if ended.status is JobStatus.SUCCEEDED:
                self._bundles.publish(connection, name, tag, bundle, author)

        return self._store.change(job.id, end, with_it=publish)
