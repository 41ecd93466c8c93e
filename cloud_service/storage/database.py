"""The service's SQLite database: its tables, and how transactions begin.

Write-ahead logging lets readers go on beside one writer; ``synchronous=FULL`` makes a committed transition survive a
power cut. A writing transaction takes the write lock when it begins (``BEGIN IMMEDIATE``), so a read-then-write inside
it cannot lose an update, nor fail half-way because another writer came between. Nothing here is SQLite's alone but
``open_database``; the statements are SQLAlchemy's. Knows nothing about what a job is.

A new table needs nothing but its definition. A change of an existing one is a function at the end of ``_MIGRATIONS``,
which brings a database of the version before to the next; a table may already have the change when it runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import OperationalError
from sqlalchemy.types import TypeDecorator

from shared.durable_files import disk_errors, free_bytes
from shared.errors import DiskError, UpgradeNeeded

_BUSY_MILLISECONDS = 30_000
_IS_WRITING = "zo_is_writing"


class UtcTime(TypeDecorator[datetime]):
    """An aware datetime, kept as seconds since 1970 (to the microsecond)."""

    impl = sa.Float
    cache_ok = True

    def process_bind_param(self, value: datetime | None, _dialect: sa.Dialect) -> float | None:
        """Return what is stored."""
        return None if value is None else value.timestamp()

    def process_result_value(self, value: Any | None, _dialect: sa.Dialect) -> datetime | None:
        """Return what was stored."""
        return None if value is None else datetime.fromtimestamp(value, UTC)


metadata = sa.MetaData()

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String, nullable=False, unique=True),
    sa.Column("request", sa.JSON, nullable=False),
    sa.Column("input_digest", sa.String, nullable=False, index=True),
    sa.Column("status", sa.String, nullable=False, index=True),
    sa.Column("stage", sa.String),
    sa.Column("progress", sa.JSON, nullable=False),
    sa.Column("created", UtcTime, nullable=False),
    sa.Column("started", UtcTime),
    sa.Column("finished", UtcTime),
    sa.Column("estimated_finish", UtcTime),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("crashes", sa.Integer, nullable=False),
    sa.Column("crashed_stage", sa.String),
    sa.Column("crashed_done", sa.Integer, nullable=False, server_default="0"),
    sa.Column("owner", sa.String),
    sa.Column("lease_expires", UtcTime),
    sa.Column("stage_started", UtcTime),
    sa.Column("stage_done_at_start", sa.Integer),
    sa.Column("outcome", sa.JSON(none_as_null=True)),
    sa.Column("result", sa.JSON(none_as_null=True)),
    sa.Column("error", sa.JSON(none_as_null=True)),
    sa.Column("last_event", sa.Integer, nullable=False),
    sa.Column("message", sa.String, nullable=False),
    sa.Column("owner_key", sa.String),
    sa.Column("idempotency_owner", sa.String),
    sa.Column("idempotency_key", sa.String),
    sa.Column("body_digest", sa.String),
    sa.Column("owner_peer", sa.String),
    sa.UniqueConstraint("idempotency_owner", "idempotency_key"),
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("job_id", sa.ForeignKey("jobs.id"), primary_key=True),
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("at", UtcTime, nullable=False),
    sa.Column("status", sa.String, nullable=False),
    sa.Column("stage", sa.String),
    sa.Column("progress", sa.JSON, nullable=False),
    sa.Column("message", sa.String, nullable=False),
)

api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("secret_sha256", sa.String, nullable=False),
    sa.Column("scopes", sa.JSON, nullable=False),
    sa.Column("created", UtcTime, nullable=False),
    sa.Column("revoked", UtcTime),
    sa.Column("publishes", sa.JSON(none_as_null=True)),
)

bundles = sa.Table(
    "bundles",
    metadata,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("digest", sa.String, primary_key=True, index=True),
    sa.Column("media_type", sa.String, nullable=False),
    sa.Column("size", sa.Integer, nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("summary", sa.JSON, nullable=False),
    sa.Column("has_report", sa.Boolean, nullable=False),
    sa.Column("created", UtcTime, nullable=False),
)
"""Every bundle that was published under a name; ``size`` is its manifest's length, ``size_bytes`` that of all blobs."""

tags = sa.Table(
    "tags",
    metadata,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("tag", sa.String, primary_key=True),
    sa.Column("digest", sa.String),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("moved_at", UtcTime, nullable=False),
    sa.Index("tags_by_digest", "name", "digest"),
)
"""What each tag names; a deleted tag keeps its row with no digest, because its version must never fall."""

signatures = sa.Table(
    "signatures",
    metadata,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("tag", sa.String, primary_key=True),
    sa.Column("digest", sa.String, nullable=False),
    sa.Column("artifact", sa.String, nullable=False),
    sa.Column("signed_by", sa.String),
    sa.Column("signed_at", UtcTime, nullable=False),
    sa.Index("signatures_by_digest", "name", "digest"),
)
"""The signature artifact of each bundle under its tag ``sha256-<hex>.sig``; the artifact's manifest is a blob.

``signed_by`` is the publisher's fingerprint, or null where the artifact holds none that can be read.
"""

published_blobs = sa.Table(
    "published_blobs",
    metadata,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("digest", sa.String, primary_key=True, index=True),
    sa.Column("listed_by", sa.String, primary_key=True),
    sa.Column("bundle", sa.String, nullable=False),
    sa.Column("media_type", sa.String, nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Index("published_blobs_by_bundle", "name", "bundle"),
)
"""All that clients may read by digest: the blob, the manifest that lists it (a manifest lists itself), the bundle."""

unneeded_blobs = sa.Table(
    "unneeded_blobs",
    metadata,
    sa.Column("digest", sa.String, primary_key=True),
    sa.Column("since", UtcTime, nullable=False),
)
"""Blobs in the store that no bundle needs, and when that was first seen."""

audit = sa.Table(
    "audit",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("at", UtcTime, nullable=False),
    sa.Column("action", sa.String, nullable=False),
    sa.Column("key_id", sa.String),
    sa.Column("peer", sa.String),
    sa.Column("job_id", sa.String),
    sa.Column("name", sa.String),
    sa.Column("tag", sa.String),
    sa.Column("digest_before", sa.String),
    sa.Column("digest_after", sa.String),
    sa.Column("subject_key", sa.String),
    sa.Index("audit_by_tag", "name", "tag"),
)
"""Every change of what is published and of the keys; rows are only ever added."""


def open_database(path: Path) -> sa.Engine:
    """Return an engine for the SQLite file, with the tables made where they are missing; ``dispose`` it at the end.

    Raises:
        DiskError: The file cannot be written.
        UpgradeNeeded: The file was written by a newer service.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)  # SQLite gives the files beside it the mode of this one
        path.chmod(0o600)
    engine = sa.create_engine(sa.URL.create("sqlite", database=str(path)))
    sa.event.listen(engine, "connect", _prepare_connection)
    sa.event.listen(engine, "begin", _begin)
    try:
        with writing(engine) as connection:
            _create_tables(connection, path)
    except BaseException:
        engine.dispose()
        raise
    return engine


@contextlib.contextmanager
def writing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Begin a transaction that holds the write lock from its first moment; commit at the end, roll back on an error.

    Raises:
        DiskError: The database's disk is full or not writable.
    """
    with _converted_errors(engine), engine.connect() as connection:
        connection = connection.execution_options(**{_IS_WRITING: True})
        with connection.begin():
            yield connection


@contextlib.contextmanager
def reading(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Begin a transaction that sees one state of the database throughout and blocks nobody."""
    with _converted_errors(engine), engine.connect() as connection:
        yield connection


def _prepare_connection(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # we send BEGIN ourselves
    cursor = connection.cursor()
    for pragma in (f"busy_timeout={_BUSY_MILLISECONDS}", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: sa.Connection) -> None:
    is_writing = connection.get_execution_options().get(_IS_WRITING, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_writing else "BEGIN")


def _create_tables(connection: sa.Connection, path: Path) -> None:
    version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
    if version > SCHEMA_VERSION:
        raise UpgradeNeeded(
            f"{path} has schema {version}",
            needed=f"schema {SCHEMA_VERSION}, or a newer zo-cloud",
            next_step="upgrade zo-cloud: pip install --upgrade 'zo-device[cloud]'",
        )
    metadata.create_all(connection)
    if version:
        for migrate in _MIGRATIONS[version - 1 :]:
            migrate(connection)
    connection.exec_driver_sql(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _add_columns(connection: sa.Connection, *columns: sa.Column[Any]) -> None:
    """Add columns where their tables lack them."""
    inspector = sa.inspect(connection)
    for column in columns:
        table = column.table
        if column.name not in {known["name"] for known in inspector.get_columns(table.name)}:
            definition = sa.schema.CreateColumn(column).compile(dialect=connection.dialect)
            connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {definition}")


def _remember_where_jobs_crash(connection: sa.Connection) -> None:
    """Bring schema 1 to 2."""
    _add_columns(connection, jobs.c.crashed_stage, jobs.c.crashed_done)


def _tell_owners_and_what_keys_publish(connection: sa.Connection) -> None:
    """Bring schema 2 to 3: keys of before may publish under every name, as they could."""
    _add_columns(connection, jobs.c.owner_key, jobs.c.owner_peer, api_keys.c.publishes)
    for key in connection.execute(sa.select(api_keys.c.id, api_keys.c.scopes)).all():
        publishes = ["*"] if "jobs" in key.scopes else []
        connection.execute(sa.update(api_keys).where(api_keys.c.id == key.id).values(publishes=publishes))


_MIGRATIONS: tuple[Callable[[sa.Connection], None], ...] = (
    _remember_where_jobs_crash,
    _tell_owners_and_what_keys_publish,
)
SCHEMA_VERSION = 1 + len(_MIGRATIONS)


@contextlib.contextmanager
def _converted_errors(engine: sa.Engine) -> Iterator[None]:
    try:
        yield
    except OperationalError as error:
        reason = str(error.orig)
        if not any(words in reason for words in ("disk is full", "readonly", "unable to open", "disk I/O")):
            raise
        path = Path(engine.url.database or "")
        raise DiskError(
            f"{path}: {reason} ({free_bytes(path.parent)} bytes free)",
            next_step="free some disk space or fix the folder's permissions; nothing was lost",
        ) from error
