"""The rows that make a bundle visible: the bundle itself, what may be read of it, what tags name, its signature.

Each function writes in the caller's transaction and may be repeated. Knows nothing about who may do it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from cloud_service.storage.database import bundles, published_blobs, signatures, tags
from cloud_service.storage.releases import next_version
from shared.bundle.config import BundleConfig
from shared.bundle.layout import ImageLayout
from shared.bundle.manifest import MAX_MANIFEST_BYTES, Descriptor, Manifest, parse_artifact
from shared.bundle.signature import signature_tag


@dataclass(frozen=True, slots=True)
class ValidBundle:
    """A bundle in the layout that may be published.

    Attributes:
        manifest: Its manifest.
        blobs: What the manifest lists.
        summary: What a list tells about it, besides its names and size.
    """

    manifest: Descriptor
    blobs: tuple[Descriptor, ...]
    summary: dict[str, Any]

    @property
    def size_bytes(self) -> int:
        """Bytes of all distinct blobs."""
        return sum(blob.size for blob in self.blobs)


def describe(manifest: Descriptor, document: Manifest, config: BundleConfig) -> ValidBundle:
    """Return what publishing needs of a bundle whose documents were read."""
    summary = {
        "base_model": config.source.id,
        "parameter_count": config.parameter_counts.total,
        "sensitive_count": config.sensitive_count,
        "perplexity_16bit": config.quality.get("perplexity_16bit"),
        "perplexity_bundle": config.quality.get("perplexity_bundle"),
    }
    return ValidBundle(manifest, tuple(document.blobs), summary)


def add_bundle(connection: sa.Connection, name: str, bundle: ValidBundle, *, has_report: bool) -> None:
    """Let clients read a bundle by digest under ``name``."""
    digest = bundle.manifest.digest
    is_known = sa.and_(bundles.c.name == name, bundles.c.digest == digest)
    if connection.execute(sa.update(bundles).where(is_known).values(has_report=has_report)).rowcount:
        return
    connection.execute(
        sa.insert(bundles).values(
            name=name,
            digest=digest,
            media_type=bundle.manifest.media_type,
            size=bundle.manifest.size,
            size_bytes=bundle.size_bytes,
            summary=bundle.summary,
            has_report=has_report,
            created=datetime.now(UTC),
        )
    )
    _add_blobs(connection, name, digest, bundle.manifest, bundle.blobs)


def set_tag(connection: sa.Connection, name: str, tag: str, digest: str | None) -> int:
    """Let a tag name a bundle, or None nothing any more, and return the tag's new version."""
    row = sa.and_(tags.c.name == name, tags.c.tag == tag)
    previous = connection.scalar(sa.select(tags.c.version).where(row))
    now = datetime.now(UTC)
    version = next_version(previous, now)
    values = {"digest": digest, "version": version, "moved_at": now}
    if previous is None:
        connection.execute(sa.insert(tags).values(name=name, tag=tag, **values))
    else:
        connection.execute(sa.update(tags).where(row).values(**values))
    return version


def set_signature(
    connection: sa.Connection,
    layout: ImageLayout,
    name: str,
    digest: str,
    artifact: Descriptor,
    *,
    signed_by: str | None,
    signed_at: datetime,
) -> None:
    """Let clients read a signature artifact as that of a bundle; an older one's blobs stay readable for a while."""
    row = sa.and_(signatures.c.name == name, signatures.c.digest == digest)
    values = {"artifact": artifact.digest, "signed_by": signed_by, "signed_at": signed_at}
    if not connection.execute(sa.update(signatures).where(row).values(**values)).rowcount:
        tag = signature_tag(digest)
        connection.execute(sa.insert(signatures).values(name=name, tag=tag, digest=digest, **values))
    listed = parse_artifact(layout.read_blob(artifact.digest, max_bytes=MAX_MANIFEST_BYTES)).blobs
    is_known = sa.and_(published_blobs.c.name == name, published_blobs.c.listed_by == artifact.digest)
    if connection.scalar(sa.select(published_blobs.c.digest).where(is_known).limit(1)) is None:
        _add_blobs(connection, name, digest, artifact, listed)


def _add_blobs(
    connection: sa.Connection, name: str, bundle: str, manifest: Descriptor, blobs: Iterable[Descriptor]
) -> None:
    connection.execute(
        sa.insert(published_blobs),
        [
            {
                "name": name,
                "digest": blob.digest,
                "listed_by": manifest.digest,
                "bundle": bundle,
                "media_type": blob.media_type,
                "size": blob.size,
            }
            for blob in {blob.digest: blob for blob in [manifest, *blobs]}.values()
        ],
    )


def last_publisher(connection: sa.Connection) -> str | None:
    """Return the fingerprint of the key that signed last, or None where nothing was ever signed."""
    newest = sa.select(signatures.c.signed_by).order_by(signatures.c.signed_at.desc())
    return connection.scalar(newest.where(signatures.c.signed_by.is_not(None)).limit(1))
