"""Who changed what is published, from where, and what was there before: one row for each change, never altered.

A row is written in the transaction of the change itself, so neither exists without the other. Knows nothing about HTTP.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from cloud_service.storage.database import audit, reading
from shared.api import AuditAction, AuditEntry


@dataclass(frozen=True, slots=True)
class Author:
    """Who makes a change.

    Attributes:
        key_id: The API key; None where no key was needed.
        peer: Address of the caller, or a word for where else the change comes from.
        job_id: The job whose bundle is published.
    """

    key_id: str | None = None
    peer: str | None = None
    job_id: str | None = None


def operator() -> Author:
    """Return the author of what is done at this machine's command line."""
    return Author(peer=f"command line of uid {os.getuid()}")


def record(connection: sa.Connection, action: AuditAction, author: Author, **what: str | None) -> None:
    """Write one row in the change's transaction.

    Args:
        connection: The transaction.
        action: What is done.
        author: Who does it.
        what: Values of the columns name, tag, digest_before, digest_after and subject_key.
    """
    who = {"key_id": author.key_id, "peer": author.peer, "job_id": author.job_id}
    connection.execute(sa.insert(audit).values(at=datetime.now(UTC), action=action, **who, **what))


class AuditLog:
    """Reads the audit rows of one service."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def newest(
        self, *, after: int | None = None, limit: int = 50, name: str | None = None, tag: str | None = None
    ) -> list[AuditEntry]:
        """Return up to ``limit`` entries, newest first.

        Args:
            after: Only entries before the one with this id.
            limit: How many at most.
            name: Only changes of this bundle name …
            tag: … and of this tag.
        """
        query = sa.select(audit).order_by(audit.c.id.desc()).limit(limit)
        if after is not None:
            query = query.where(audit.c.id < after)
        if name is not None:
            query = query.where(audit.c.name == name)
        if tag is not None:
            query = query.where(audit.c.tag == tag)
        with reading(self._engine) as connection:
            return [entry_of(row._mapping) for row in connection.execute(query)]


def previous_digest(connection: sa.Connection, name: str, tag: str, current: str | None) -> str | None:
    """Return what the tag named before it came to what it names now (None: it was deleted), or None."""
    query = (
        sa.select(audit.c.digest_before)
        .where(audit.c.name == name, audit.c.tag == tag, audit.c.digest_after == current)
        .where(audit.c.digest_before.is_not(None), audit.c.digest_before != current)
        .order_by(audit.c.id.desc())
        .limit(1)
    )
    return connection.scalar(query)


def entry_of(row: Mapping[Any, Any]) -> AuditEntry:
    """Return an audit row as the API shows it."""
    return AuditEntry.model_validate(dict(row))
