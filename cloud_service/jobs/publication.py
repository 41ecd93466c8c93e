"""Turns a job's outcome into a published bundle, exactly once.

    adopt · validate and sign (nothing visible) → [ fence · tag bundle and signature · job succeeded ]

The bracket holds the database's write lock: no other attempt can be claimed between the fence and the commit. Killed
between tagging and committing, the job is still running with its outcome written down; the next start repeats the
bracket, and the result is the same bytes.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from cloud_service.jobs.adoption import adopt_bundle
from cloud_service.jobs.messages import REPORT_NAME, STORE_NAME, WORKSPACE_NAME
from cloud_service.jobs.record import JobRecord, LeaseLost, Outcome, fail, heartbeat, job_error, stop, succeed
from cloud_service.jobs.store import JobStore
from cloud_service.jobs.untrusted_files import read_untrusted
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
        signature = self._bundles.sign(outcome.manifest)
        with contextlib.suppress(FileNotFoundError):  # the input was prepared before, with its report
            page = read_untrusted(folder, f"{WORKSPACE_NAME}/{REPORT_NAME}", max_bytes=_MAX_REPORT_BYTES)
            self._bundles.add_report(digest, page)
        result = JobResult(name=outcome.name, tag=outcome.tag, digest=digest, size_bytes=outcome.size_bytes)

        def end(current: JobRecord) -> JobRecord:
            if current.status is JobStatus.CANCELLING:
                return stop(current, attempt=job.attempt, now=clock())
            return succeed(current, attempt=job.attempt, result=result, now=clock())

        def make_visible(ended: JobRecord) -> None:
            if ended.status is JobStatus.SUCCEEDED:
                self._bundles.publish(outcome.name, outcome.tag, outcome.manifest, signature)

        return self._store.change(job.id, end, before_commit=make_visible)
