"""Brings what a service of before published into the database: every tag and signature of the store's ``index.json``.

Done once, at the first start with a database that knows no import; the file stays as it is. Costs reading two documents
of each bundle. A bundle that cannot be read is left out with a line in the log: it could not be listed before, either.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import sqlalchemy as sa

from cloud_service.storage import audit
from cloud_service.storage.audit import Author
from cloud_service.storage.bundle_index import add_bundle, describe, set_signature, set_tag
from cloud_service.storage.database import audit as audit_rows
from cloud_service.storage.database import writing
from shared.api import SIGNATURE_SUFFIX, AuditAction
from shared.bundle.layout import ImageLayout, manifest_descriptor
from shared.bundle.manifest import MAX_MANIFEST_BYTES, Descriptor, parse_manifest
from shared.bundle.read import read_config
from shared.bundle.signature import verify
from shared.bundle.signature_artifact import documents_beside
from shared.errors import ZoError

_SIGNATURE_TAG = re.compile(rf"(sha256)-([0-9a-f]{{64}}){re.escape(SIGNATURE_SUFFIX)}")
_AUTHOR = Author(peer="index.json")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Reference:
    """One entry of ``index.json``."""

    name: str
    tag: str
    manifest: Descriptor

    @property
    def signed_digest(self) -> str | None:
        """The digest of the bundle that this is a signature of, or None for a bundle's own tag."""
        match = _SIGNATURE_TAG.fullmatch(self.tag)
        return None if match is None else ":".join(match.groups())


def import_index(engine: sa.Engine, layout: ImageLayout, reports: Path) -> int:
    """Import ``index.json`` where that was not done before, and return the number of tags.

    Args:
        engine: The database.
        layout: The store; its index is read, not changed.
        reports: Folder of the report pages.

    Raises:
        IntegrityError: ``index.json`` itself is damaged; nothing was imported.
    """
    with writing(engine) as connection:
        done = sa.select(audit_rows.c.id).where(audit_rows.c.action == AuditAction.IMPORT).limit(1)
        if connection.scalar(done) is not None:
            return 0
        references = [_Reference(*_split(named), found) for named, found in sorted(layout.references().items())]
        return _Import(connection, layout, reports).all(references)


class _Import:
    """One import, in its transaction."""

    def __init__(self, connection: sa.Connection, layout: ImageLayout, reports: Path) -> None:
        self._connection, self._layout, self._reports = connection, layout, reports

    def all(self, references: list[_Reference]) -> int:
        """Import signed bundles first, so that those whose tag moved on stay readable; then tags."""
        for reference in references:
            if (digest := reference.signed_digest) is not None and self._add(reference.name, digest):
                self._sign(reference, digest)
        tags = [reference for reference in references if not reference.tag.endswith(SIGNATURE_SUFFIX)]
        return sum(self._tag(reference) for reference in tags)

    def _sign(self, reference: _Reference, digest: str) -> None:
        """Take over a signature as old as can be, so that it is renewed soon; whose it is guards against a lost key."""
        try:
            documents = documents_beside(self._layout, reference.name, digest)
            old = None if documents is None else documents.old_signature
            signed_by = None if old is None else verify(old, digest).fingerprint
        except ZoError as error:
            _logger.warning("the signature of %s@%s cannot be read: %s", reference.name, digest, error.found)
            signed_by = None
        set_signature(
            self._connection,
            self._layout,
            reference.name,
            digest,
            reference.manifest,
            signed_by=signed_by,
            signed_at=datetime.fromtimestamp(0, UTC),
        )

    def _tag(self, reference: _Reference) -> bool:
        name, tag, digest = reference.name, reference.tag, reference.manifest.digest
        is_readable = self._add(name, digest)
        if is_readable:
            set_tag(self._connection, name, tag, digest)
            audit.record(self._connection, AuditAction.IMPORT, _AUTHOR, name=name, tag=tag, digest_after=digest)
        return is_readable

    def _add(self, name: str, digest: str) -> bool:
        try:
            data = self._layout.read_blob(digest, max_bytes=MAX_MANIFEST_BYTES)
            manifest = parse_manifest(data)
            bundle = describe(manifest_descriptor(data), manifest, read_config(self._layout, manifest))
        except ZoError as error:
            _logger.warning("%s@%s of index.json is left out: %s", name, digest, error.found)
            return False
        page = self._reports / f"{digest.removeprefix('sha256:')}.html"
        add_bundle(self._connection, name, bundle, has_report=page.exists())
        return True


def _split(reference: str) -> tuple[str, str]:
    name, _, tag = reference.rpartition(":")
    return name, tag
