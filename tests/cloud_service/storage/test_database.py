"""Opening the database, and its transactions."""

from __future__ import annotations

import sqlite3
import stat
from pathlib import Path

import pytest
import sqlalchemy as sa

from cloud_service.jobs.store import JobStore
from cloud_service.storage.database import jobs, open_database, reading, writing
from cloud_service.storage.keys import KeyStore, Scope
from shared.errors import DiskError, UpgradeNeeded


def test_the_database_is_private_and_opens_again(tmp_path: Path) -> None:
    path = tmp_path / "data" / "jobs.sqlite3"
    for _ in range(2):
        engine = open_database(path)
        with reading(engine) as connection:
            assert connection.scalar(sa.select(sa.func.count()).select_from(jobs)) == 0
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        engine.dispose()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_database_of_a_newer_service_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite3"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 4")
    connection.close()
    with pytest.raises(UpgradeNeeded, match="schema 4"):
        open_database(path)


def test_the_jobs_of_a_database_of_schema_1_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite3"
    open_database(path).dispose()
    with sqlite3.connect(path) as connection:
        connection.execute(
            "INSERT INTO jobs (id, request, input_digest, status, progress, created, attempt, crashes, last_event,"
            " message) VALUES ('j', '{\"model\": \"gpt2\"}', 'sha256:0', 'queued', '{}', 0, 0, 0, 1, 'queued')"
        )
        for column in ("crashed_stage", "crashed_done", "owner_key"):
            connection.execute(f"ALTER TABLE jobs DROP COLUMN {column}")
        connection.execute("PRAGMA user_version = 1")
    connection.close()
    for _ in range(2):
        engine = open_database(path)
        job = JobStore(engine).get("j")
        assert (job.crashes, job.crashed_stage, job.crashed_done) == (0, None, 0)
        engine.dispose()


def test_a_writer_holds_the_write_lock_from_its_first_moment_and_readers_go_on(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite3"
    engine = open_database(path)
    other = sqlite3.connect(path, timeout=0, isolation_level=None)
    with writing(engine):
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
        assert other.execute("SELECT count(*) FROM jobs").fetchone() == (0,)
    other.execute("BEGIN IMMEDIATE")
    other.close()
    engine.dispose()


def test_a_full_disk_is_named_with_its_free_bytes(tmp_path: Path) -> None:
    engine = open_database(tmp_path / "jobs.sqlite3")
    with reading(engine) as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")  # the pool gives the same connection again
    with pytest.raises(DiskError, match=r"disk is full \(\d+ bytes free\)"):
        KeyStore(engine).create("x" * 100_000, [Scope.JOBS])
    assert KeyStore(engine).all() == []
    engine.dispose()
