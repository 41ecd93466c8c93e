"""Publishing exactly once: fencing, cancellation, and a kill between tagging and committing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloud_service.jobs import record
from cloud_service.jobs.publication import Publisher
from cloud_service.jobs.record import JobRecord, LeaseLost, Outcome
from cloud_service.jobs.store import JobStore, utc_now
from cloud_service.storage.bundles import BundleStore
from cloud_service.storage.database import open_database
from shared.api import JobStatus, PrepareRequest
from shared.bundle.layout import ImageLayout


class PowerCut(BaseException):
    """The process ends here."""


class CutAfterTagging(BundleStore):
    """A bundle store on a machine that loses power right after the tags were set."""

    def publish(self, *arguments: Any) -> None:
        super().publish(*arguments)
        raise PowerCut


class Parts(NamedTuple):
    jobs: JobStore
    layout: ImageLayout
    outcome: Outcome
    folder: Path

    def publisher(self, kind: type[BundleStore] = BundleStore) -> Publisher:
        key = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
        return Publisher(self.jobs, kind(self.layout, self.folder / "reports", key), lease_seconds=30)

    def claim(self) -> JobRecord:
        claimed = self.jobs.claim_next(owner="me", lease_seconds=30)
        assert claimed is not None
        return claimed


@pytest.fixture
def parts(tmp_path: Path, tiny_bundle: Any) -> Iterator[Parts]:
    shutil.copytree(tiny_bundle.layout.root, tmp_path / "store")
    (tmp_path / "store" / "index.json").unlink()
    manifest = tiny_bundle.layout.resolve(tiny_bundle.reference).model_copy(update={"annotations": None})
    outcome = Outcome(name="tiny", tag="latest", manifest=manifest, size_bytes=1, fingerprint="f")
    engine = open_database(tmp_path / "jobs.sqlite3")
    jobs = JobStore(engine)
    jobs.create(PrepareRequest(model="tiny"))
    yield Parts(jobs, ImageLayout(tmp_path / "store"), outcome, tmp_path)
    engine.dispose()


def test_a_published_job_has_succeeded_and_its_checkpoints_are_gone(parts: Parts) -> None:
    (parts.folder / "workspace").mkdir()
    done = parts.publisher().publish(parts.claim(), parts.outcome, parts.folder)
    assert done.status is JobStatus.SUCCEEDED
    assert "tiny:latest" in parts.layout.references()
    assert not (parts.folder / "workspace").exists()


def test_an_attempt_that_lost_its_lease_publishes_nothing(parts: Parts) -> None:
    old = parts.claim()
    parts.jobs.requeue_abandoned(max_attempts=5, is_any_lease_over=True)
    parts.claim()
    with pytest.raises(LeaseLost):
        parts.publisher().publish(old, parts.outcome, parts.folder)
    assert parts.layout.references() == {}


def test_a_job_cancelled_before_its_publication_publishes_nothing(parts: Parts) -> None:
    job = parts.claim()
    parts.jobs.change(job.id, lambda held: record.request_cancel(held, now=utc_now()))
    ended = parts.publisher().publish(job, parts.outcome, parts.folder)
    assert ended.status is JobStatus.CANCELLED
    assert parts.layout.references() == {}


def test_a_power_cut_between_tagging_and_committing_is_repaired_by_the_next_attempt(parts: Parts) -> None:
    job = parts.claim()
    parts.jobs.change(job.id, lambda held: record.record_outcome(held, attempt=1, outcome=parts.outcome))
    with pytest.raises(PowerCut):
        parts.publisher(CutAfterTagging).publish(job, parts.outcome, parts.folder)
    assert parts.jobs.get(job.id).status is JobStatus.RUNNING
    index = (parts.layout.root / "index.json").read_bytes()

    parts.jobs.requeue_abandoned(max_attempts=5, is_any_lease_over=True)
    again = parts.claim()
    assert again.outcome == parts.outcome
    done = parts.publisher().publish(again, parts.outcome, parts.folder)
    assert (done.status, done.attempt) == (JobStatus.SUCCEEDED, 2)
    assert (parts.layout.root / "index.json").read_bytes() == index


def test_a_bundle_that_is_not_valid_fails_the_job(parts: Parts) -> None:
    for path in parts.layout.blobs.iterdir():
        if path.stat().st_size > 10_000:
            path.write_bytes(path.read_bytes()[:-1])
    failed = parts.publisher().publish(parts.claim(), parts.outcome, parts.folder)
    assert failed.status is JobStatus.FAILED
    assert failed.error is not None
    assert failed.error.type == "blob-truncated"
    assert parts.layout.references() == {}
