"""Deletes what nothing needs any more from the store: blobs, report pages, and temporary files that a kill left behind.

    mark     a blob that no published bundle lists and no unfinished job's outcome names is written down, with the time
    sweep    what has been unneeded for the grace period, and is older than every unfinished job, is deleted

Each batch is marked and swept in one writing transaction: nothing can be published, and no outcome be recorded, between
the look and the deletion. A blob that becomes needed again within the grace period is forgotten as unneeded; a response
that is being sent keeps its open file. Costs one indexed query for each 500 files. May run beside the service.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path

import sqlalchemy as sa

from cloud_service.storage.database import bundles, jobs, published_blobs, signatures, unneeded_blobs, writing
from shared.api import JobStatus
from shared.bundle.layout import ImageLayout
from shared.bundle.manifest import MAX_MANIFEST_BYTES, parse_artifact
from shared.errors import ZoError

_BATCH = 500
_BLOB_NAME = re.compile(r"[0-9a-f]{64}")
_UNFINISHED = [status for status in JobStatus if not status.is_terminal]


@dataclass(frozen=True, slots=True)
class Swept:
    """What was deleted, or in a dry run would be.

    Attributes:
        blobs: Blobs and temporary files.
        blob_bytes: Their bytes.
        waiting_blobs: Unneeded blobs whose grace period is not over.
        reports: Report pages of bundles that are not published any more.
    """

    blobs: int = 0
    blob_bytes: int = 0
    waiting_blobs: int = 0
    reports: int = 0

    def __add__(self, other: Swept) -> Swept:
        return Swept(
            self.blobs + other.blobs,
            self.blob_bytes + other.blob_bytes,
            self.waiting_blobs + other.waiting_blobs,
            self.reports + other.reports,
        )


def sweep(
    engine: sa.Engine, layout: ImageLayout, reports: Path, *, now: datetime, grace: timedelta, is_dry_run: bool = False
) -> Swept:
    """Delete what has not been needed for ``grace``, and return how much.

    Args:
        engine: The database.
        layout: The store.
        reports: Folder of the report pages.
        now: The time.
        grace: How long a blob is kept after it was first seen to be unneeded.
        is_dry_run: Only tell what would be deleted.
    """
    total = Swept()
    if not is_dry_run:
        _forget_old_signatures(engine, before=now - grace)
    for files, sweep_batch in ((layout.blobs.glob("*"), _sweep_blobs), (reports.glob("*.html"), _sweep_reports)):
        while batch := list(islice(files, _BATCH)):
            with writing(engine) as connection:
                total += sweep_batch(_Sweep(connection, layout, now, grace, is_dry_run), batch)
    return total


@dataclass(frozen=True, slots=True)
class _Sweep:
    """One batch's transaction, and the rules of this run."""

    connection: sa.Connection
    layout: ImageLayout
    now: datetime
    grace: timedelta
    is_dry_run: bool

    def oldest_unfinished_start(self) -> float:
        """Return when the oldest job that is not over was started, as a file's time; without any, the present."""
        oldest = self.connection.scalar(sa.select(sa.func.min(jobs.c.started)).where(jobs.c.status.in_(_UNFINISHED)))
        return (oldest or self.now).timestamp()

    def outcome_digests(self) -> set[str]:
        """Return what the outcomes of unfinished jobs need: they are about to be published."""
        outcomes = sa.select(jobs.c.outcome).where(jobs.c.status.in_(_UNFINISHED), jobs.c.outcome.is_not(None))
        digests: set[str] = set()
        for outcome in self.connection.scalars(outcomes):
            manifest = str(outcome["manifest"]["digest"])
            digests.add(manifest)
            try:
                listed = parse_artifact(self.layout.read_blob(manifest, max_bytes=MAX_MANIFEST_BYTES)).blobs
            except ZoError:
                continue  # it will not be published, either
            digests.update(blob.digest for blob in listed)
        return digests

    def delete(self, path: Path) -> int:
        """Delete a file and return its bytes; only the bytes in a dry run."""
        size = path.stat().st_size
        if not self.is_dry_run:
            path.unlink()
        return size


def _sweep_blobs(run: _Sweep, files: list[Path]) -> Swept:
    oldest_start = run.oldest_unfinished_start()
    by_digest = {f"sha256:{path.name}": path for path in files if _BLOB_NAME.fullmatch(path.name)}
    listed = sa.select(published_blobs.c.digest).where(published_blobs.c.digest.in_(by_digest)).distinct()
    needed = run.outcome_digests() | set(run.connection.scalars(listed))
    unneeded = [digest for digest in by_digest if digest not in needed]
    since = _marked(run, needed & by_digest.keys(), unneeded)
    due = [
        digest
        for digest in unneeded
        if since[digest] <= run.now - run.grace and by_digest[digest].stat().st_mtime <= oldest_start
    ]
    left_behind = [
        path
        for path in files
        if not _BLOB_NAME.fullmatch(path.name)
        and path.stat().st_mtime <= min(oldest_start, (run.now - run.grace).timestamp())
    ]
    sizes = [run.delete(path) for path in [*(by_digest[digest] for digest in due), *left_behind]]
    if not run.is_dry_run:
        run.connection.execute(sa.delete(unneeded_blobs).where(unneeded_blobs.c.digest.in_(due)))
    return Swept(blobs=len(sizes), blob_bytes=sum(sizes), waiting_blobs=len(unneeded) - len(due))


def _marked(run: _Sweep, needed: set[str], unneeded: list[str]) -> dict[str, datetime]:
    """Write down what is unneeded since now, forget what is needed again, and return since when each is unneeded."""
    rows = run.connection.execute(sa.select(unneeded_blobs).where(unneeded_blobs.c.digest.in_(unneeded)))
    since = {row.digest: row.since for row in rows}
    new = [digest for digest in unneeded if digest not in since]
    if not run.is_dry_run:
        run.connection.execute(sa.delete(unneeded_blobs).where(unneeded_blobs.c.digest.in_(needed)))
        if new:
            marks = [{"digest": digest, "since": run.now} for digest in new]
            run.connection.execute(sa.insert(unneeded_blobs), marks)
    return since | dict.fromkeys(new, run.now)


def _sweep_reports(run: _Sweep, files: list[Path]) -> Swept:
    by_digest = {f"sha256:{path.stem}": path for path in files}
    kept = sa.select(bundles.c.digest).where(bundles.c.digest.in_(by_digest)).distinct()
    needed = run.outcome_digests() | set(run.connection.scalars(kept))
    latest = min(run.oldest_unfinished_start(), (run.now - run.grace).timestamp())
    due = [path for digest, path in by_digest.items() if digest not in needed and path.stat().st_mtime <= latest]
    for path in due:
        run.delete(path)
    return Swept(reports=len(due))


def _forget_old_signatures(engine: sa.Engine, *, before: datetime) -> None:
    """Let nobody read the blobs of signatures that were replaced long ago any more."""
    current = sa.select(signatures.c.artifact).where(
        signatures.c.name == published_blobs.c.name, signatures.c.digest == published_blobs.c.bundle
    )
    replaced = sa.and_(
        published_blobs.c.listed_by != published_blobs.c.bundle,
        sa.not_(current.where(signatures.c.artifact == published_blobs.c.listed_by).exists()),
        current.where(signatures.c.signed_at < before).exists(),
    )
    with writing(engine) as connection:
        connection.execute(sa.delete(published_blobs).where(replaced))
