"""Signs what a name and tag of an image layout mean, for ``zo-cloud prepare``, which has no database (see ``signing``).

    version = max(the previous one + 1, seconds since 1970)

so versions grow even where the record of the previous one was lost, or the clock was set back. Statements about other
tags of the same bundle stay. Nobody renews a statement here: prepare again, or publish by the service.
Knows nothing about who may publish what.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from cloud_service.storage.signing_keys import SigningKey
from shared.bundle.layout import ImageLayout
from shared.bundle.manifest import Descriptor
from shared.bundle.signature_artifact import Statements, documents_beside, publish_statements, verified_statements
from shared.bundle.statement import ReleaseStatement, sign_release

LIFETIME = timedelta(days=365)


def next_version(previous: int | None, now: datetime) -> int:
    """Return the version of a publication at ``now`` after the version ``previous``, or after none."""
    return max((previous or 0) + 1, int(now.timestamp()))


def published_statement(layout: ImageLayout, name: str, tag: str) -> ReleaseStatement | None:
    """Return the statement that a layout publishes for a tag, or None where there is none.

    Raises:
        NotFound: It is incomplete.
        IntegrityError: It is damaged.
    """
    manifest = layout.references().get(f"{name}:{tag}")
    return None if manifest is None else _statement_beside(layout, name, tag, manifest.digest)


def sign_tag(
    layout: ImageLayout,
    key: SigningKey,
    name: str,
    tag: str,
    manifest: Descriptor,
    *,
    previous: int | None,
    now: datetime,
    lifetime: timedelta = LIFETIME,
) -> Descriptor:
    """Sign that ``name:tag`` means a bundle, and return the artifact to be tagged with it; nothing is visible yet.

    Args:
        layout: Where the bundle lies, validated.
        key: The publisher's.
        name: The bundle's name.
        tag: The tag.
        manifest: What the tag is to mean.
        previous: The last version that was published for the name and tag, or None.
        now: The time.
        lifetime: How long devices may take it for the newest.

    Raises:
        LimitExceeded: More tags name this bundle than a reader accepts.
        IntegrityError: What lies beside the bundle is damaged.
        DiskError: The disk is full or not writable.
    """
    beside = _statement_beside(layout, name, tag, manifest.digest)
    last = max(previous or 0, beside.version if beside else 0)
    release = sign_release(
        key.private,
        name=name,
        tag=tag,
        version=next_version(last, now),
        digest=manifest.digest,
        expires=now + lifetime,
    )
    known = verified_statements(documents_beside(layout, name, manifest.digest))
    return publish_statements(layout, manifest, known.joined(Statements((release,), key.rotations)))


def _statement_beside(layout: ImageLayout, name: str, tag: str, digest: str) -> ReleaseStatement | None:
    statements = [release.statement for release in verified_statements(documents_beside(layout, name, digest)).releases]
    return next((statement for statement in statements if (statement.name, statement.tag) == (name, tag)), None)
