"""Published bundles: how something becomes published, is retagged and deleted. ``catalog`` is the readers' side.

    validate (reads every byte) → in one transaction: tag, signature, everything that may be read, the audit row

Blobs lie in the image layout; what is published is rows of the database, so a change is visible whole or not at all,
together with whatever else its transaction holds. Who may publish under a name is asked in the same transaction. The
version of a tag is at least the Unix time of its last change and only grows. Knows nothing about jobs or HTTP.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from cloud_service.bundle_names import check_tag, matches_any
from cloud_service.storage import audit
from cloud_service.storage.audit import Author
from cloud_service.storage.bundle_index import ValidBundle, add_bundle, describe, set_signature, set_tag
from cloud_service.storage.database import bundles, published_blobs, reading, signatures, tags, writing
from cloud_service.storage.keys import check_may_publish, is_admin
from cloud_service.storage.releases import next_version
from cloud_service.storage.signing import BundleSigner, TaggedBundle
from shared.api import AuditAction, PublishedTag
from shared.bundle.digest import check_digest
from shared.bundle.layout import ImageLayout
from shared.bundle.manifest import Descriptor
from shared.bundle.read import read_bundle
from shared.durable_files import disk_errors, write_atomically
from shared.errors import Conflict, NotFound

_DIGEST_TAG_LENGTH = len("sha256-") + 12


class TagIsImmutable(Conflict):
    """The tag may not name another bundle any more."""


class BundleStore:
    """The published bundles of one service.

    Args:
        engine: The database.
        layout: Where the blobs are.
        reports: Folder of the report pages.
        signer: Signs what is published.
        immutable_tags: Patterns of tags that, once published, name the same digest for ever.
    """

    def __init__(
        self,
        engine: sa.Engine,
        layout: ImageLayout,
        reports: Path,
        signer: BundleSigner,
        immutable_tags: Sequence[str] = (),
    ) -> None:
        self.layout = layout
        self._engine = engine
        self._reports = reports
        self._signer = signer
        self._immutable_tags = tuple(immutable_tags)

    def validate(self, manifest: Descriptor) -> ValidBundle:
        """Read the whole bundle and return what publishing it needs; nothing becomes visible.

        Raises:
            IntegrityError: Something about the bundle is wrong.
        """
        bundle = read_bundle(self.layout, manifest.digest)
        return describe(manifest, bundle.manifest, bundle.config)

    def publish(
        self, connection: sa.Connection, name: str, tag: str, bundle: ValidBundle, author: Author
    ) -> PublishedTag:
        """Sign a bundle and make it visible under ``name:tag`` when the transaction commits. May be repeated.

        Args:
            connection: A writing transaction.
            name: The name.
            tag: The tag; what it named before stays readable by digest.
            bundle: What ``validate`` returned.
            author: Who publishes.

        Raises:
            Forbidden: The author's key may not publish under that name.
            TagIsImmutable: The tag names another bundle and may not move.
            DiskError: The disk is full or not writable.
        """
        check_may_publish(connection, author.key_id, name)
        has_report = self.report_path(bundle.manifest.digest).exists()
        add_bundle(connection, name, bundle, has_report=has_report)
        return self._name(connection, AuditAction.PUBLISH, name, tag, bundle.manifest, author)

    def retag(self, name: str, tag: str, digest: str | None, author: Author) -> PublishedTag:
        """Let a tag name another bundle that was published under the same name.

        Args:
            name: The name.
            tag: The tag, which need not exist yet.
            digest: The bundle; None is what the tag named before its last change.
            author: Who does it.

        Raises:
            InvalidRequest: It is not a tag.
            Forbidden: The author's key may not publish under that name.
            NotFound: Nothing of that name has the digest, or the tag never named anything else.
            TagIsImmutable: The tag names another bundle and may not move.
        """
        check_tag(tag)
        with writing(self._engine) as connection:
            check_may_publish(connection, author.key_id, name)
            if digest is None:
                digest = audit.previous_digest(connection, name, tag, _tag_digest(connection, name, tag))
                if digest is None:
                    raise NotFound(
                        f"{name}:{tag} never named another bundle",
                        needed="a tag that was moved or deleted before",
                        next_step=f"zo-cloud bundles history {name}:{tag}",
                        next_request=f"GET /v1/bundles/{name}/tags/{tag}/history",
                    )
            manifest = _manifest(_bundle_row(connection, name, digest))
            return self._name(connection, AuditAction.RETAG, name, tag, manifest, author)

    def delete_tag(self, name: str, tag: str, author: Author) -> None:
        """Remove a tag; its bundle stays readable by digest.

        Raises:
            Forbidden: The author's key may not publish under that name.
            NotFound: There is no such tag.
            TagIsImmutable: Only an admin key may delete this tag.
        """
        with writing(self._engine) as connection:
            check_may_publish(connection, author.key_id, name)
            self._remove_tag(connection, name, tag, author)

    def delete_bundle(self, name: str, digest: str, author: Author) -> None:
        """Remove a bundle from a name with every tag that names it; nobody can read it there from now on.

        Its blobs are deleted later, by ``garbage``, unless another bundle needs them.

        Raises:
            Forbidden: The author's key may not publish under that name.
            NotFound: Nothing of that name has the digest.
            TagIsImmutable: A tag names it that only an admin key may delete.
        """
        with writing(self._engine) as connection:
            check_may_publish(connection, author.key_id, name)
            _bundle_row(connection, name, digest)
            naming = sa.select(tags.c.tag).where(tags.c.name == name, tags.c.digest == digest).order_by(tags.c.tag)
            for tag in connection.scalars(naming).all():
                self._remove_tag(connection, name, tag, author)
            for table, column in (
                (signatures, signatures.c.digest),
                (published_blobs, published_blobs.c.bundle),
                (bundles, bundles.c.digest),
            ):
                connection.execute(sa.delete(table).where(table.c.name == name, column == digest))
            audit.record(connection, AuditAction.DELETE_BUNDLE, author, name=name, digest_before=digest)

    def renew_signatures(self, now: datetime) -> int:
        """Sign again what expires soon, or was signed by another key or in an older form; return how much.

        Each signature is a transaction of its own, so publications can come in between. Versions stay as they are.

        Raises:
            DiskError: The disk is full or not writable.
        """
        is_current = sa.and_(
            signatures.c.signed_by == self._signer.publisher,
            signatures.c.signed_at >= self._signer.renews_before(now),
        )
        is_of = sa.and_(signatures.c.name == bundles.c.name, signatures.c.digest == bundles.c.digest)
        query = sa.select(bundles.c.name, bundles.c.digest).where(~sa.exists().where(is_of, is_current))
        with reading(self._engine) as connection:
            outdated = connection.execute(query).all()
        for name, digest in outdated:
            with writing(self._engine) as connection:
                row = connection.execute(_bundle(name, digest)).one_or_none()
                if row is not None:  # it was not deleted in between
                    self._sign(connection, name, _manifest(row), now)
        return len(outdated)

    def add_report(self, digest: str, page: bytes) -> None:
        """Keep a bundle's report page; does nothing where there is one."""
        target = self.report_path(digest)
        if not target.exists():
            with disk_errors(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(target, page)

    def report_path(self, digest: str) -> Path:
        """Return where the report page of a bundle lies or would lie."""
        return self._reports / f"{check_digest(digest).removeprefix('sha256:')}.html"

    def check_readable(self) -> None:
        """Do nothing where the store can be read. Raises OSError or NotFound otherwise."""
        if not self.layout.exists:
            raise NotFound(f"no image layout in {self.layout.root}")

    @property
    def free_bytes(self) -> int:
        """Free bytes of the store's disk."""
        return shutil.disk_usage(self.layout.root).free

    def _name(
        self,
        connection: sa.Connection,
        action: AuditAction,
        name: str,
        tag: str,
        manifest: Descriptor,
        author: Author,
    ) -> PublishedTag:
        """Let ``name:tag`` name a bundle of the name, and sign that."""
        before, digest = _tag_digest(connection, name, tag), manifest.digest
        if before not in (None, digest):
            self._check_may_move(name, tag)
        version = set_tag(connection, name, tag, digest)
        self._sign(connection, name, manifest, datetime.now(UTC))
        audit.record(connection, action, author, name=name, tag=tag, digest_before=before, digest_after=digest)
        return PublishedTag(name=name, tag=tag, digest=digest, version=version)

    def _sign(self, connection: sa.Connection, name: str, manifest: Descriptor, now: datetime) -> None:
        """Sign what every tag of the name means that names this bundle now.

        Where none does any more, the statement is about a tag made of the digest: who names the digest still learns who
        published it, and nobody can be shown the bundle as the newest.
        """
        naming = sa.select(tags.c.tag, tags.c.version).where(tags.c.name == name, tags.c.digest == manifest.digest)
        versions = {row.tag: row.version for row in connection.execute(naming)}
        versions = versions or {manifest.digest.replace(":", "-")[:_DIGEST_TAG_LENGTH]: next_version(None, now)}
        artifact = self._signer.sign(TaggedBundle(name, manifest, versions), now=now)
        publisher = self._signer.publisher
        set_signature(connection, self.layout, name, manifest.digest, artifact, signed_by=publisher, signed_at=now)

    def _remove_tag(self, connection: sa.Connection, name: str, tag: str, author: Author) -> None:
        before = _tag_digest(connection, name, tag)
        if before is None:
            raise NotFound(
                f"no tag {name}:{tag}"[:300],
                next_step=f"zo-cloud bundles list {name}"[:300],
                next_request=f"GET /v1/bundles?name={name}"[:300],
            )
        if not is_admin(connection, author.key_id):
            self._check_may_move(name, tag)
        set_tag(connection, name, tag, None)
        audit.record(connection, AuditAction.DELETE_TAG, author, name=name, tag=tag, digest_before=before)

    def _check_may_move(self, name: str, tag: str) -> None:
        if matches_any(tag, self._immutable_tags):
            raise TagIsImmutable(
                f"{name}:{tag} is published, and tags like it never name another bundle",
                needed=f"a tag that fits none of: {', '.join(self._immutable_tags)}",
                next_step="publish under a new tag",
                param="tag",
            )


def _tag_digest(connection: sa.Connection, name: str, tag: str) -> str | None:
    return connection.scalar(sa.select(tags.c.digest).where(tags.c.name == name, tags.c.tag == tag))


def _bundle(name: str, digest: str) -> sa.Select[Any]:
    return sa.select(bundles).where(bundles.c.name == name, bundles.c.digest == digest)


def _manifest(row: sa.Row[Any]) -> Descriptor:
    return Descriptor(media_type=row.media_type, digest=row.digest, size=row.size)


def _bundle_row(connection: sa.Connection, name: str, digest: str) -> sa.Row[Any]:
    row = connection.execute(_bundle(name, digest)).one_or_none()
    if row is None:
        raise NotFound(
            f"no bundle {name[:200]}@{digest[:80]}",
            next_step=f"zo-cloud bundles list {name[:200]}",
            next_request=f"GET /v1/bundles?name={name[:200]}",
        )
    return row
