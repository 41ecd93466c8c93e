"""What clients may read of the published bundles: by tag, by digest, and as pages of lists.

A bundle's signature is read under the tag ``sha256-<hex>.sig`` of the same name. What was published under a name can
be read by digest until it is deleted, so a device in the middle of a download is not cut off when the tag moves on.
Nothing else can be read: a blob that a running job has written is invisible. A lookup is one indexed query, and a page
reads no file. Knows nothing about jobs or HTTP.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from cloud_service.storage.database import bundles, published_blobs, reading, signatures, tags
from shared.api import BUNDLE_NAME_PATTERN, TAG_PATTERN, BundleSummary
from shared.bundle.digest import check_digest
from shared.bundle.layout import ImageLayout
from shared.bundle.manifest import MANIFEST_MEDIA_TYPE, MAX_MANIFEST_BYTES, Descriptor, parse_artifact
from shared.errors import InvalidDigest, NotFound

_BLOB_MEDIA_TYPE = "application/octet-stream"
_LIST = {"next_step": "zo-cloud bundles list", "next_request": "GET /v1/bundles"}
"""How to see what is published, at the command line and over HTTP."""


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """A blob that a client may read."""

    path: Path
    digest: str
    media_type: str


class Catalog:
    """The readers' side of one service's bundles.

    Args:
        engine: The database.
        layout: Where the blobs are.
    """

    def __init__(self, engine: sa.Engine, layout: ImageLayout) -> None:
        self._engine = engine
        self._layout = layout

    def manifest(self, name: str, reference: str) -> StoredBlob:
        """Return the manifest of a tag or digest published under ``name``.

        Raises:
            NotFound: There is none.
        """
        if _is_name(name) and (":" in reference or re.fullmatch(TAG_PATTERN, reference)):
            with reading(self._engine) as connection:
                digest = reference if ":" in reference else _tagged(connection, name, reference)
                found = connection.execute(
                    sa.select(published_blobs.c.digest, published_blobs.c.media_type).where(
                        published_blobs.c.name == name,
                        published_blobs.c.digest == digest,
                        published_blobs.c.listed_by == digest,
                    )
                ).one_or_none()
            if found is not None:
                return StoredBlob(self._layout.blob_path(found.digest), found.digest, found.media_type)
        raise NotFound(f"no bundle {name[:200]!r} with the reference {reference[:80]!r}", **_LIST)

    def blob(self, name: str, digest: str) -> StoredBlob:
        """Return a blob of a bundle published under ``name``.

        Raises:
            NotFound: No bundle of that name has such a blob.
        """
        try:
            check_digest(digest)
        except InvalidDigest as error:
            raise NotFound(f"no blob {digest[:80]!r}", needed="sha256: and 64 lower-case hex digits") from error
        listed = sa.select(published_blobs.c.digest).where(
            published_blobs.c.name == name, published_blobs.c.digest == digest
        )
        path = self._layout.blob_path(digest)
        if _is_name(name) and path.is_file():
            with reading(self._engine) as connection:
                if connection.execute(listed.limit(1)).one_or_none() is not None:
                    return StoredBlob(path, digest, _BLOB_MEDIA_TYPE)
        raise NotFound(f"no blob {digest} in the bundles named {name[:200]!r}", **_LIST)

    def has_bundle(self, digest: str) -> bool:
        """Whether a bundle of that digest is published under any name, so that all its blobs are kept."""
        query = sa.select(bundles.c.digest).where(bundles.c.digest == digest).limit(1)
        with reading(self._engine) as connection:
            return connection.scalar(query) is not None

    def page(self, *, after: str | None = None, limit: int = 50, name: str | None = None) -> list[BundleSummary]:
        """Return up to ``limit`` tags of bundles, sorted by name and tag, those of signatures left out.

        Args:
            after: Only what comes after this ``name:tag``, which need not exist.
            limit: How many at most.
            name: Only the bundles of this name.
        """
        query = (
            sa.select(tags.c.tag, bundles)
            .join(bundles, sa.and_(bundles.c.name == tags.c.name, bundles.c.digest == tags.c.digest))
            .order_by(tags.c.name, tags.c.tag)
            .limit(limit)
        )
        if after is not None:
            before, _, tag = after.rpartition(":")
            query = query.where(sa.tuple_(tags.c.name, tags.c.tag) > sa.tuple_(before, tag))
        if name is not None:
            query = query.where(tags.c.name == name)
        with reading(self._engine) as connection:
            return [_summary(row) for row in connection.execute(query)]

    def names(self, *, after: str | None = None, limit: int) -> list[str]:
        """Return up to ``limit`` names with bundles that come after ``after``, sorted."""
        query = sa.select(bundles.c.name).distinct().order_by(bundles.c.name).limit(limit)
        if after is not None:
            query = query.where(bundles.c.name > after)
        with reading(self._engine) as connection:
            return list(connection.scalars(query))

    def tags(self, name: str, *, after: str | None = None, limit: int) -> list[str]:
        """Return up to ``limit`` tags of a name that come after ``after``, sorted, with those of its signatures.

        Who copies every tag of this list to another registry copies the signatures too.

        Raises:
            NotFound: Nothing is published under that name.
        """
        own = sa.select(tags.c.tag).where(tags.c.name == name, tags.c.digest.is_not(None))
        signed = sa.select(signatures.c.tag).where(signatures.c.name == name)
        listed = own.union_all(signed).subquery()
        query = sa.select(listed.c.tag).order_by(listed.c.tag).limit(limit)
        if after is not None:
            query = query.where(listed.c.tag > after)
        with reading(self._engine) as connection:
            if connection.scalar(sa.select(bundles.c.name).where(bundles.c.name == name).limit(1)) is None:
                raise NotFound(f"no bundle {name[:200]!r}", **_LIST)
            return list(connection.scalars(query))

    def signatures_of(self, name: str, digest: str) -> list[Descriptor]:
        """Return the manifests of the signatures of a bundle; empty where there is none."""
        query = (
            sa.select(published_blobs.c.digest, published_blobs.c.size)
            .join(
                signatures,
                sa.and_(
                    signatures.c.name == published_blobs.c.name,
                    signatures.c.artifact == published_blobs.c.digest,
                    published_blobs.c.listed_by == published_blobs.c.digest,
                ),
            )
            .where(signatures.c.name == name, signatures.c.digest == digest)
        )
        with reading(self._engine) as connection:
            return [
                Descriptor(media_type=MANIFEST_MEDIA_TYPE, digest=row.digest, size=row.size)
                for row in connection.execute(query)
            ]

    def artifact_type(self, manifest: Descriptor) -> str:
        """Return what kind of artifact a manifest in the layout is of."""
        data = self._layout.read_blob(manifest.digest, max_bytes=MAX_MANIFEST_BYTES)
        return parse_artifact(data).artifact_type


def _is_name(name: str) -> bool:
    return len(name) <= 200 and re.fullmatch(BUNDLE_NAME_PATTERN, name) is not None


def _tagged(connection: sa.Connection, name: str, tag: str) -> str | None:
    named = connection.scalar(sa.select(tags.c.digest).where(tags.c.name == name, tags.c.tag == tag))
    if named is not None:
        return str(named)
    return connection.scalar(sa.select(signatures.c.artifact).where(signatures.c.name == name, signatures.c.tag == tag))


def _summary(row: sa.Row[Any]) -> BundleSummary:
    report_url = f"/v1/bundles/{row.name}/report?reference={row.digest}" if row.has_report else None
    return BundleSummary(
        name=row.name,
        tag=row.tag,
        digest=row.digest,
        size_bytes=row.size_bytes,
        report_url=report_url,
        **row.summary,
    )
