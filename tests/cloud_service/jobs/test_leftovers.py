"""What jobs that are over keep, and for how long."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from cloud_service.jobs import record
from cloud_service.jobs.leftovers import Cleared, Retention, clear_leftovers
from cloud_service.jobs.store import JobStore
from cloud_service.storage.database import jobs as job_rows
from cloud_service.storage.database import open_database, writing
from shared.api import JobStatus, PrepareRequest

NOW = datetime.now(UTC)
RETENTION = Retention(workspace=timedelta(days=7), log=timedelta(days=30))


class Yard:
    """Jobs with folders that hold a workspace of 5 bytes and a log of 3."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "jobs"
        self.engine = open_database(folder / "jobs.sqlite3")
        self.jobs = JobStore(self.engine)

    def add(self, status: JobStatus, days: float = 0) -> Path:
        """Add a job that has been over for ``days``."""
        job = self.jobs.create(PrepareRequest(model="tiny"))
        finished = NOW - timedelta(days=days) if status.is_terminal else None
        with writing(self.engine) as connection:
            row = sa.update(job_rows).where(job_rows.c.id == job.id)
            connection.execute(row.values(status=status, finished=finished))
        folder = self.folder / job.id
        (folder / "workspace" / "blocks").mkdir(parents=True)
        (folder / "workspace" / "blocks" / "0").write_bytes(b"block")
        (folder / "log.txt").write_bytes(b"log")
        return folder

    def clear(self, *, is_dry_run: bool = False) -> Cleared:
        return clear_leftovers(self.engine, self.folder, RETENTION, now=NOW, is_dry_run=is_dry_run)


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[Yard]:
    yard = Yard(tmp_path)
    yield yard
    yard.engine.dispose()


@pytest.mark.parametrize("status", [JobStatus.FAILED, JobStatus.CANCELLED])
def test_a_failed_or_cancelled_job_keeps_its_workspace_a_week_and_its_log_a_month(
    yard: Yard, status: JobStatus
) -> None:
    young, old, ancient = (yard.add(status, days) for days in (6.9, 7.1, 30.1))
    assert yard.clear() == Cleared(workspaces=1, job_folders=1, job_bytes=5 + 8)
    assert (young / "workspace").is_dir()
    assert sorted(path.name for path in old.iterdir()) == ["log.txt"]
    assert not ancient.exists()
    assert yard.clear() == Cleared()


def test_a_succeeded_job_needs_no_workspace(yard: Yard) -> None:
    folder = yard.add(JobStatus.SUCCEEDED, 0.01)
    assert yard.clear().workspaces == 1
    assert sorted(path.name for path in folder.iterdir()) == ["log.txt"]


def test_a_job_that_is_not_over_and_what_is_no_jobs_folder_are_left_alone(yard: Yard) -> None:
    kept = [yard.add(status) for status in (JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.CANCELLING)]
    foreign = yard.folder / "notes"
    foreign.mkdir()
    assert yard.clear() == Cleared()
    assert all((folder / "workspace").is_dir() for folder in kept)
    assert foreign.is_dir()


def test_a_dry_run_deletes_nothing(yard: Yard) -> None:
    folder = yard.add(JobStatus.FAILED, 100)
    dry = yard.clear(is_dry_run=True)
    assert (folder / "log.txt").exists()
    assert yard.clear() == dry


def test_what_a_killed_run_left_half_deleted_is_finished_by_the_next(yard: Yard) -> None:
    yard.add(JobStatus.QUEUED)
    half = yard.folder / ".deleting-jobs-x"
    (half / "workspace").mkdir(parents=True)
    yard.clear()
    assert not half.exists()


def test_a_workspace_that_a_repeated_request_took_over_is_not_missed(yard: Yard) -> None:
    folder = yard.add(JobStatus.FAILED, 8)
    job = yard.jobs.create(PrepareRequest(model="tiny"))
    (yard.folder / job.id).mkdir()
    (folder / "workspace").rename(yard.folder / job.id / "workspace")
    assert yard.clear() == Cleared()
    assert (yard.folder / job.id / "workspace").is_dir()
    yard.jobs.change(job.id, lambda held: record.request_cancel(held, now=NOW))
    assert yard.clear() == Cleared()
