"""Blobs, reports and temporary files that nothing needs go after their grace period, and nothing else does."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from shelf import Shelf

from cloud_service.jobs import record
from cloud_service.jobs.record import Outcome
from cloud_service.jobs.store import JobStore
from cloud_service.storage.audit import Author
from cloud_service.storage.garbage import Swept, sweep
from shared.api import PrepareRequest
from shared.bundle.manifest import Descriptor
from shared.bundle.read import read_bundle
from shared.errors import NotFound

NOW = datetime.now(UTC)
DAY = timedelta(days=1)


def run(shelf: Shelf, *, days: float, **options: Any) -> Swept:
    """Sweep ``days`` from now with a grace period of a day."""
    reports = shelf.folder / "reports"
    return sweep(shelf.engine, shelf.layout, reports, now=NOW + timedelta(days=days), grace=DAY, **options)


def blobs(shelf: Shelf) -> set[str]:
    return {path.name for path in shelf.layout.blobs.iterdir()}


def test_nothing_of_a_published_bundle_and_its_signature_is_deleted(shelf: Shelf, manifest: Descriptor) -> None:
    shelf.publish("tiny", "latest", manifest)
    before = blobs(shelf)
    for days in (0, 2, 400):
        assert run(shelf, days=days) == Swept()
    assert blobs(shelf) == before
    assert read_bundle(shelf.layout, manifest.digest)


def test_the_blobs_of_a_deleted_bundle_go_when_the_grace_period_is_over(shelf: Shelf, manifest: Descriptor) -> None:
    shelf.publish("tiny", "latest", manifest)
    count = len(blobs(shelf))
    assert run(shelf, days=100) == Swept()
    shelf.store.delete_bundle("tiny", manifest.digest, Author())
    assert run(shelf, days=101) == Swept(waiting_blobs=count)
    assert run(shelf, days=101.9) == Swept(waiting_blobs=count)
    assert run(shelf, days=102.1).blobs == count
    assert blobs(shelf) == set()
    assert run(shelf, days=103) == Swept()


def test_a_blob_that_another_name_or_bundle_needs_stays(shelf: Shelf, manifest: Descriptor) -> None:
    other = shelf.variant(manifest, 1)
    shelf.publish("tiny", "latest", manifest)
    shelf.publish("tiny", "other", other)
    shelf.publish("team/tiny", "latest", other)
    shelf.store.delete_bundle("tiny", manifest.digest, Author())
    shelf.store.delete_bundle("tiny", other.digest, Author())
    run(shelf, days=0)
    run(shelf, days=2)
    assert read_bundle(shelf.layout, other.digest)
    with pytest.raises(NotFound):
        shelf.layout.read_blob(manifest.digest, max_bytes=1 << 20)
    assert len(shelf.catalog.signatures_of("team/tiny", other.digest)) == 1


def test_what_is_needed_again_in_its_grace_period_begins_a_new_one(shelf: Shelf, manifest: Descriptor) -> None:
    run(shelf, days=0)
    shelf.publish("tiny", "latest", manifest)
    run(shelf, days=0.5)
    shelf.store.delete_bundle("tiny", manifest.digest, Author())
    assert run(shelf, days=1.4).blobs == 0
    assert run(shelf, days=2.5).blobs > 0


def test_a_dry_run_tells_what_would_go_and_changes_nothing(shelf: Shelf, manifest: Descriptor) -> None:
    run(shelf, days=0)
    before = blobs(shelf)
    dry = run(shelf, days=2, is_dry_run=True)
    assert dry.blobs == len(before)
    assert dry.blob_bytes == sum(path.stat().st_size for path in shelf.layout.blobs.iterdir())
    assert blobs(shelf) == before
    assert run(shelf, days=2) == dry


def test_the_outcome_of_a_job_that_is_not_over_is_kept_however_old_its_blobs_are(
    shelf: Shelf, manifest: Descriptor
) -> None:
    jobs = JobStore(shelf.engine)
    job = jobs.create(PrepareRequest(model="tiny"))
    jobs.claim_next(owner="me", lease_seconds=60)
    outcome = Outcome(name="tiny", tag="latest", manifest=manifest, size_bytes=1, fingerprint="f")
    jobs.change(job.id, lambda held: record.record_outcome(held, attempt=1, outcome=outcome))
    for path in shelf.layout.blobs.iterdir():
        os.utime(path, (0, 0))
    run(shelf, days=0)
    run(shelf, days=50)
    shelf.publish("tiny", "latest", manifest)
    assert read_bundle(shelf.layout, manifest.digest)


def test_what_was_written_since_the_oldest_running_job_began_is_kept(shelf: Shelf) -> None:
    jobs = JobStore(shelf.engine, clock=lambda: NOW - 3 * DAY)
    job = jobs.create(PrepareRequest(model="tiny"))
    jobs.claim_next(owner="me", lease_seconds=60)
    old, *young = sorted(shelf.layout.blobs.iterdir())
    os.utime(old, (0, 0))
    run(shelf, days=0)
    swept = run(shelf, days=50)
    assert (swept.blobs, swept.waiting_blobs) == (1, len(young))
    assert not old.exists()
    jobs.change(job.id, lambda held: record.release(held, attempt=1, message="", now=NOW))
    jobs.change(job.id, lambda held: record.request_cancel(held, now=NOW))
    assert run(shelf, days=50).blobs == len(young)


def test_temporary_files_of_killed_writers_go_after_a_day(shelf: Shelf) -> None:
    left, young = shelf.layout.blobs / ".abc.tmp", shelf.layout.blobs / ".def.tmp"
    left.write_bytes(b"half")
    young.write_bytes(b"half")
    os.utime(left, (0, 0))
    run(shelf, days=0)
    assert (left.exists(), young.exists()) == (False, True)


def test_the_report_of_a_deleted_bundle_goes_too(shelf: Shelf, manifest: Descriptor) -> None:
    shelf.store.add_report(manifest.digest, b"<p>")
    shelf.publish("tiny", "latest", manifest)
    assert run(shelf, days=2).reports == 0
    shelf.store.delete_bundle("tiny", manifest.digest, Author())
    assert run(shelf, days=2).reports == 1
    assert not shelf.store.report_path(manifest.digest).exists()
