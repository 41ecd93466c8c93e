"""Deletes what jobs that are over left in their folders.

    workspace of a failed or cancelled job    after its retention: until then a repeated request takes it over
    workspace of a succeeded job              at once: the service was killed before it could
    the whole folder, with log and report     when both retentions are over

Folders of jobs that are not over, and folders that are no job's, are left alone. Knows nothing about bundles.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path

import sqlalchemy as sa

from cloud_service.jobs.messages import WORKSPACE_NAME
from cloud_service.storage.database import jobs, reading
from shared.api import JobStatus

_BATCH = 500
_DELETED_PREFIX = ".deleting-"


@dataclass(frozen=True, slots=True)
class Retention:
    """How long a job that is over keeps its workspace, and its log and report."""

    workspace: timedelta
    log: timedelta


@dataclass(frozen=True, slots=True)
class Cleared:
    """What was deleted, or in a dry run would be."""

    workspaces: int = 0
    job_folders: int = 0
    job_bytes: int = 0

    def __add__(self, other: Cleared) -> Cleared:
        return Cleared(
            self.workspaces + other.workspaces,
            self.job_folders + other.job_folders,
            self.job_bytes + other.job_bytes,
        )


def clear_leftovers(
    engine: sa.Engine, folder: Path, retention: Retention, *, now: datetime, is_dry_run: bool = False
) -> Cleared:
    """Delete what jobs that are over do not keep any longer, and return how much.

    Args:
        engine: The database.
        folder: The folder of one folder per job.
        retention: How long things are kept.
        now: The time.
        is_dry_run: Only tell what would be deleted.
    """
    total, folders = Cleared(), folder.iterdir() if folder.is_dir() else iter(())
    while batch := list(islice(folders, _BATCH)):
        for half_deleted in (path for path in batch if path.name.startswith(_DELETED_PREFIX)):
            shutil.rmtree(half_deleted, ignore_errors=True)
        over = (
            sa.select(jobs.c.id, jobs.c.status, jobs.c.finished)
            .where(jobs.c.id.in_([path.name for path in batch]), jobs.c.finished.is_not(None))
            .where(jobs.c.status.in_([status for status in JobStatus if status.is_terminal]))
        )
        with reading(engine) as connection:
            rows = connection.execute(over).all()
        for job_id, status, finished in rows:
            age = now - finished
            kept = timedelta(0) if status == JobStatus.SUCCEEDED else retention.workspace
            workspace = folder / job_id / WORKSPACE_NAME
            if age > max(kept, retention.log):
                total += Cleared(job_folders=1, job_bytes=_delete(folder / job_id, folder, is_dry_run=is_dry_run))
            elif age > kept and workspace.is_dir():
                total += Cleared(workspaces=1, job_bytes=_delete(workspace, folder, is_dry_run=is_dry_run))
    return total


def _delete(path: Path, folder: Path, *, is_dry_run: bool) -> int:
    """Delete a folder and return its bytes; it is renamed first, so that nobody meets a half of it."""
    size = sum(part.lstat().st_size for part in path.rglob("*") if not part.is_dir())
    if not is_dry_run:
        doomed = folder / f"{_DELETED_PREFIX}{path.parent.name}-{path.name}"
        path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
    return size
