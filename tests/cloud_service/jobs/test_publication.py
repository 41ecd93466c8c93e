"""Publishing exactly once: fencing, cancellation, rights, and a kill before the transaction commits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from shelf import KEY, Shelf, copy_blobs, make_shelf

from cloud_service.jobs import record
from cloud_service.jobs.publication import Publisher
from cloud_service.jobs.record import JobRecord, LeaseLost, Outcome
from cloud_service.jobs.store import JobStore, utc_now
from cloud_service.storage.bundles import BundleStore
from cloud_service.storage.keys import Scope
from cloud_service.storage.signing import BundleSigner
from shared.api import AuditAction, JobStatus, PrepareRequest


class PowerCut(BaseException):
    """The process ends here."""


class CutAfterTagging(BundleStore):
    """A bundle store on a machine that loses power right after the tag was set."""

    def publish(self, *arguments: Any) -> Any:
        super().publish(*arguments)
        raise PowerCut


class Parts(NamedTuple):
    jobs: JobStore
    shelf: Shelf
    outcome: Outcome
    folder: Path

    def publisher(self, kind: type[BundleStore] = BundleStore, **options: Any) -> Publisher:
        shelf = self.shelf
        signer = BundleSigner(shelf.layout, KEY)
        bundles = kind(shelf.engine, shelf.layout, self.folder / "reports", signer, **options)
        return Publisher(self.jobs, bundles, lease_seconds=30)

    def claim(self) -> JobRecord:
        claimed = self.jobs.claim_next(owner="me", lease_seconds=30)
        assert claimed is not None
        return claimed

    def published(self) -> list[str]:
        return [f"{summary.name}:{summary.tag}" for summary in self.shelf.catalog.page()]


@pytest.fixture
def parts(tmp_path: Path, tiny_bundle: Any) -> Iterator[Parts]:
    copy_blobs(tiny_bundle.layout, tmp_path)
    manifest = tiny_bundle.layout.resolve(tiny_bundle.reference).model_copy(update={"annotations": None})
    outcome = Outcome(name="tiny", tag="latest", manifest=manifest, size_bytes=1, fingerprint="f")
    shelf = make_shelf(tmp_path)
    jobs = JobStore(shelf.engine)
    jobs.create(PrepareRequest(model="tiny"))
    yield Parts(jobs, shelf, outcome, tmp_path)
    shelf.engine.dispose()


def test_a_published_job_has_succeeded_and_its_checkpoints_are_gone(parts: Parts) -> None:
    (parts.folder / "workspace").mkdir()
    done = parts.publisher().publish(parts.claim(), parts.outcome, parts.folder)
    assert done.status is JobStatus.SUCCEEDED
    assert parts.published() == ["tiny:latest"]
    assert not (parts.folder / "workspace").exists()


def test_an_attempt_that_lost_its_lease_publishes_nothing(parts: Parts) -> None:
    old = parts.claim()
    parts.jobs.requeue_abandoned(max_attempts=5, is_any_lease_over=True)
    parts.claim()
    with pytest.raises(LeaseLost):
        parts.publisher().publish(old, parts.outcome, parts.folder)
    assert parts.published() == []


def test_a_job_cancelled_before_its_publication_publishes_nothing(parts: Parts) -> None:
    job = parts.claim()
    parts.jobs.change(job.id, lambda held: record.request_cancel(held, now=utc_now()))
    ended = parts.publisher().publish(job, parts.outcome, parts.folder)
    assert ended.status is JobStatus.CANCELLED
    assert parts.published() == []


def test_a_power_cut_before_the_commit_leaves_nothing_and_is_repaired_by_the_next_attempt(parts: Parts) -> None:
    job = parts.claim()
    parts.jobs.change(job.id, lambda held: record.record_outcome(held, attempt=1, outcome=parts.outcome))
    with pytest.raises(PowerCut):
        parts.publisher(CutAfterTagging).publish(job, parts.outcome, parts.folder)
    assert parts.jobs.get(job.id).status is JobStatus.RUNNING
    assert parts.published() == []

    parts.jobs.requeue_abandoned(max_attempts=5, is_any_lease_over=True)
    again = parts.claim()
    assert again.outcome == parts.outcome
    done = parts.publisher().publish(again, parts.outcome, parts.folder)
    assert (done.status, done.attempt) == (JobStatus.SUCCEEDED, 2)
    assert parts.published() == ["tiny:latest"]


def test_the_audit_row_of_a_publication_tells_key_address_and_job(parts: Parts) -> None:
    key, _ = parts.shelf.keys.create("ci", [Scope.JOBS], ["ti*"])
    cancelled = parts.claim()
    parts.jobs.change(cancelled.id, lambda held: record.request_cancel(held, now=utc_now()))
    parts.jobs.create(PrepareRequest(model="tiny"), owner_key=key.id, owner_peer="192.0.2.7")
    done = parts.publisher().publish(parts.claim(), parts.outcome, parts.folder)
    assert done.status is JobStatus.SUCCEEDED
    entry, _ = parts.shelf.log.newest()
    assert (entry.action, entry.key_id, entry.peer, entry.job_id) == (
        AuditAction.PUBLISH,
        key.id,
        "192.0.2.7",
        done.id,
    )
    assert (entry.name, entry.tag, entry.digest_before) == ("tiny", "latest", None)
    assert entry.digest_after == parts.outcome.manifest.digest


@pytest.mark.attack
@pytest.mark.parametrize(("publishes", "is_revoked"), [(["team/*"], False), ([], False), (["*"], True)])
def test_a_job_fails_where_its_owner_may_not_publish_under_the_name_that_it_came_to(
    parts: Parts, publishes: list[str], is_revoked: bool
) -> None:
    key, _ = parts.shelf.keys.create("ci", [Scope.JOBS], publishes)
    parts.jobs.change(parts.claim().id, lambda held: record.request_cancel(held, now=utc_now()))
    parts.jobs.create(PrepareRequest(model="tiny"), owner_key=key.id)
    if is_revoked:
        parts.shelf.keys.revoke(key.id)
    failed = parts.publisher().publish(parts.claim(), parts.outcome, parts.folder)
    assert failed.status is JobStatus.FAILED
    assert failed.error is not None
    assert failed.error.type == "forbidden"
    assert key.id in failed.error.message
    assert parts.published() == []


def test_a_job_that_would_move_an_immutable_tag_fails_with_a_typed_conflict(parts: Parts) -> None:
    other = parts.shelf.variant(parts.outcome.manifest, 1)
    parts.shelf.publish("tiny", "latest", other)
    failed = parts.publisher(immutable_tags=("late*",)).publish(parts.claim(), parts.outcome, parts.folder)
    assert failed.error is not None
    assert failed.error.type == "tag-is-immutable"
    assert parts.shelf.catalog.manifest("tiny", "latest").digest == other.digest


@pytest.mark.attack
def test_a_jobs_process_cannot_choose_another_name_or_tag_than_were_asked_for(parts: Parts) -> None:
    parts.jobs.change(parts.claim().id, lambda held: record.request_cancel(held, now=utc_now()))
    parts.jobs.create(PrepareRequest(model="tiny", name="team/tiny", tag="draft"))
    elsewhere = parts.outcome.model_copy(update={"name": "team/big", "tag": "latest"})
    done = parts.publisher().publish(parts.claim(), elsewhere, parts.folder)
    assert done.result is not None
    assert (done.result.name, done.result.tag) == ("team/tiny", "draft")
    assert parts.published() == ["team/tiny:draft"]


def test_a_bundle_that_is_not_valid_fails_the_job(parts: Parts) -> None:
    for path in parts.shelf.layout.blobs.iterdir():
        if path.stat().st_size > 10_000:
            path.write_bytes(path.read_bytes()[:-1])
    failed = parts.publisher().publish(parts.claim(), parts.outcome, parts.folder)
    assert failed.status is JobStatus.FAILED
    assert failed.error is not None
    assert failed.error.type == "blob-truncated"
    assert parts.published() == []
