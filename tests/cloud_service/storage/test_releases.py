"""Versions that only grow, and statements that are published with a tag."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from cloud_service.storage.releases import next_version, published_statement, sign_tag
from cloud_service.storage.signing_keys import SigningKey
from shared.bundle.layout import ImageLayout
from shared.bundle.manifest import Descriptor
from shared.bundle.signature import publish_signature, sign, signature_tag
from shared.bundle.signature_artifact import documents_beside, verified_statements
from shared.bundle.statement import sign_rotation

OLD = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
KEY = SigningKey(Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33))))
NOW = datetime(2030, 1, 1, tzinfo=UTC)
SECONDS = 1_893_456_000
"""Of NOW since 1970: 21915 days."""

DAY = timedelta(days=1)


@pytest.fixture
def layout(tmp_path: Path) -> ImageLayout:
    return ImageLayout.create(tmp_path)


def bundle(layout: ImageLayout, content: bytes = b"{}") -> Descriptor:
    return layout.add_bytes(content, "application/vnd.oci.image.manifest.v1+json")


def publish(layout: ImageLayout, tag: str, manifest: Descriptor, key: SigningKey = KEY, *, now: datetime = NOW) -> None:
    previous = published_statement(layout, "tiny", tag)
    version = previous.version if previous else None
    artifact = sign_tag(layout, key, "tiny", tag, manifest, previous=version, now=now, lifetime=30 * DAY)
    layout.update({f"tiny:{tag}": manifest, f"tiny:{signature_tag(manifest.digest)}": artifact})


def version_of(layout: ImageLayout, tag: str) -> int:
    statement = published_statement(layout, "tiny", tag)
    assert statement is not None
    return statement.version


@pytest.mark.parametrize(
    ("previous", "expected"), [(None, SECONDS), (7, SECONDS), (SECONDS, SECONDS + 1), (SECONDS + 99, SECONDS + 100)]
)
def test_a_version_is_the_time_unless_the_previous_one_is_as_high(previous: int | None, expected: int) -> None:
    assert next_version(previous, NOW) == expected


@given(st.lists(st.integers(0, 2**32), min_size=2, max_size=20))
def test_versions_grow_whatever_the_clock_does(seconds: list[int]) -> None:
    versions: list[int] = []
    for second in seconds:
        versions.append(next_version(versions[-1] if versions else None, datetime.fromtimestamp(second, UTC)))
    assert all(later > earlier for earlier, later in itertools.pairwise(versions))


def test_a_tag_is_stated_with_its_name_digest_and_the_end_of_its_lifetime(layout: ImageLayout) -> None:
    manifest = bundle(layout)
    publish(layout, "latest", manifest)
    statement = published_statement(layout, "tiny", "latest")
    assert statement is not None
    assert (statement.name, statement.tag, statement.digest) == ("tiny", "latest", manifest.digest)
    assert (statement.version, statement.expires) == (SECONDS, "2030-01-31T00:00:00Z")
    assert statement.publisher == KEY.fingerprint


def test_the_same_bundle_published_again_at_the_same_second_is_a_new_version(layout: ImageLayout) -> None:
    publish(layout, "latest", bundle(layout))
    publish(layout, "latest", bundle(layout))
    assert version_of(layout, "latest") == SECONDS + 1


def test_a_tag_that_goes_back_to_an_older_bundle_is_a_newer_version_of_it(layout: ImageLayout) -> None:
    first, second = bundle(layout, b"1"), bundle(layout, b"2")
    for manifest in (first, second, first):
        publish(layout, "latest", manifest)
    assert version_of(layout, "latest") == SECONDS + 2


def test_a_version_grows_even_if_the_tag_was_removed_in_between(layout: ImageLayout) -> None:
    publish(layout, "latest", bundle(layout))
    layout.update({"tiny:latest": None})
    publish(layout, "latest", bundle(layout), now=NOW - 99 * DAY)
    assert version_of(layout, "latest") == SECONDS + 1


def test_statements_of_other_tags_stay_beside_the_bundle_and_rotations_come_to_them(layout: ImageLayout) -> None:
    manifest = bundle(layout)
    publish(layout, "v1", manifest, SigningKey(OLD))
    rotation = sign_rotation(OLD, KEY.private, at=NOW)
    publish(layout, "latest", manifest, SigningKey(KEY.private, (rotation,)))
    statements = verified_statements(documents_beside(layout, "tiny", manifest.digest))
    publishers = {release.statement.tag: release.statement.publisher for release in statements.releases}
    assert publishers == {"v1": SigningKey(OLD).fingerprint, "latest": KEY.fingerprint}
    assert statements.rotations == (rotation,)


def test_a_statement_takes_the_place_of_an_older_signature(layout: ImageLayout) -> None:
    manifest = bundle(layout)
    layout.update(
        {
            "tiny:latest": manifest,
            f"tiny:{signature_tag(manifest.digest)}": publish_signature(layout, manifest, sign(OLD, manifest.digest)),
        }
    )
    assert published_statement(layout, "tiny", "latest") is None
    publish(layout, "latest", manifest)
    assert version_of(layout, "latest") == SECONDS
