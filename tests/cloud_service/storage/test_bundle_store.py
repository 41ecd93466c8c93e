"""What is published, and what stays invisible."""

from __future__ import annotations

import itertools
import json
import time
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from shelf import KEY, Shelf

from cloud_service.storage.audit import Author
from cloud_service.storage.bundles import BundleStore
from cloud_service.storage.database import writing
from cloud_service.storage.signing import LIFETIME, BundleSigner
from cloud_service.storage.signing_keys import SigningKey
from shared.bundle.manifest import Descriptor, parse_manifest
from shared.bundle.signature import signature_tag
from shared.bundle.signature_artifact import collect_documents, verified_statements
from shared.bundle.statement import ReleaseStatement, sign_rotation, verify_release
from shared.errors import DigestMismatch, NotFound


def test_nothing_is_visible_until_it_is_published(shelf: Shelf, manifest: Descriptor) -> None:
    shelf.store.validate(manifest)
    assert shelf.catalog.page() == []
    for reference in ("latest", manifest.digest):
        with pytest.raises(NotFound):
            shelf.catalog.manifest("tiny", reference)
    with pytest.raises(NotFound):
        shelf.catalog.blob("tiny", manifest.digest)
    assert not shelf.catalog.has_bundle(manifest.digest)


def test_bundle_and_signature_become_visible_in_one_step(shelf: Shelf, manifest: Descriptor) -> None:
    bundle = shelf.store.validate(manifest)
    with writing(shelf.engine) as connection:
        shelf.store.publish(connection, "team/tiny", "latest", bundle, Author())
        assert shelf.catalog.page() == []
    assert [(summary.name, summary.tag) for summary in shelf.catalog.page()] == [("team/tiny", "latest")]
    assert shelf.catalog.manifest("team/tiny", signature_tag(manifest.digest)).path.is_file()
    assert not (shelf.layout.root / "index.json").exists()


def test_a_publication_that_is_rolled_back_leaves_nothing_visible(shelf: Shelf, manifest: Descriptor) -> None:
    bundle = shelf.store.validate(manifest)

    def publish_and_fail() -> None:
        with writing(shelf.engine) as connection:
            shelf.store.publish(connection, "tiny", "latest", bundle, Author())
            raise InterruptedError

    with pytest.raises(InterruptedError):
        publish_and_fail()
    assert shelf.catalog.page() == []
    for reference in ("latest", manifest.digest, signature_tag(manifest.digest)):
        with pytest.raises(NotFound):
            shelf.catalog.manifest("tiny", reference)


def test_a_name_gives_only_its_own_blobs(shelf: Shelf, manifest: Descriptor) -> None:
    shelf.publish("tiny", "latest", manifest)
    blob = parse_manifest(shelf.layout.blob_path(manifest.digest).read_bytes()).layers[0].digest
    assert shelf.catalog.blob("tiny", blob).path.is_file()
    for name, digest in [("other", blob), ("tiny", "sha256:" + "0" * 64), ("tiny", "../../index.json")]:
        with pytest.raises(NotFound):
            shelf.catalog.blob(name, digest)


def test_the_blobs_of_a_signature_are_readable_too(shelf: Shelf, manifest: Descriptor) -> None:
    shelf.publish("tiny", "latest", manifest)
    (artifact,) = shelf.catalog.signatures_of("tiny", manifest.digest)
    (layer,) = json.loads(shelf.layout.blob_path(artifact.digest).read_bytes())["layers"]
    statement = verify_release(shelf.catalog.blob("tiny", layer["digest"]).path.read_bytes()).statement
    assert (statement.name, statement.tag, statement.digest) == ("tiny", "latest", manifest.digest)


def test_a_digest_stays_readable_when_its_tag_moves_on(shelf: Shelf, manifest: Descriptor) -> None:
    other = shelf.variant(manifest, 1)
    shelf.publish("tiny", "latest", manifest)
    shelf.publish("tiny", "latest", other)
    assert shelf.catalog.manifest("tiny", "latest").digest == other.digest
    assert shelf.catalog.manifest("tiny", manifest.digest).digest == manifest.digest


def test_a_damaged_bundle_is_not_published(shelf: Shelf, manifest: Descriptor) -> None:
    largest = max(shelf.layout.blobs.iterdir(), key=lambda path: path.stat().st_size)
    damaged = bytearray(largest.read_bytes())
    damaged[-1] ^= 1
    largest.write_bytes(damaged)
    with pytest.raises(DigestMismatch):
        shelf.store.validate(manifest)


def test_the_version_of_a_tag_only_grows_and_is_not_before_the_time(shelf: Shelf, manifest: Descriptor) -> None:
    begin = int(time.time())
    other = shelf.variant(manifest, 1)
    versions = [shelf.publish("tiny", "latest", found).version for found in (manifest, other, other)]
    shelf.store.delete_tag("tiny", "latest", Author())
    versions.append(shelf.store.retag("tiny", "latest", manifest.digest, Author()).version)
    assert versions[0] >= begin
    assert all(before < after for before, after in itertools.pairwise(versions))


def test_publishing_again_changes_nothing_that_is_listed(shelf: Shelf, manifest: Descriptor) -> None:
    shelf.publish("tiny", "latest", manifest)
    listed = shelf.catalog.page()
    shelf.publish("tiny", "latest", manifest)
    assert shelf.catalog.page() == listed


def test_a_summary_tells_what_the_configuration_says(shelf: Shelf, manifest: Descriptor) -> None:
    shelf.store.add_report(manifest.digest, b"<p>")
    shelf.publish("tiny", "v1", manifest)
    (summary,) = shelf.catalog.page()
    # 14 quantised weights of 8 sensitive values each; see tests/support/tiny_bundle.py.
    assert summary.sensitive_count == 14 * 8
    assert summary.digest == manifest.digest
    assert summary.size_bytes == sum(
        path.stat().st_size
        for path in shelf.layout.blobs.iterdir()
        if f'"sha256:{path.name}"'.encode() in shelf.layout.blob_path(manifest.digest).read_bytes()
    )
    assert summary.report_url == f"/v1/bundles/tiny/report?reference={manifest.digest}"


def statements(shelf: Shelf, digest: str) -> dict[str, ReleaseStatement]:
    """What is signed about a bundle of the name ``tiny``, by tag."""
    (artifact,) = shelf.catalog.signatures_of("tiny", digest)
    data = shelf.layout.blob_path(artifact.digest).read_bytes()
    documents = collect_documents(data, lambda blob: shelf.layout.read_blob(blob.digest, max_bytes=blob.size))
    return {release.statement.tag: release.statement for release in verified_statements(documents).releases}


def test_every_tag_of_a_bundle_is_stated_with_its_own_version(shelf: Shelf, manifest: Descriptor) -> None:
    versions = {tag: shelf.publish("tiny", tag, manifest).version for tag in ("latest", "v1")}
    stated = statements(shelf, manifest.digest)
    assert {tag: (found.version, found.digest) for tag, found in stated.items()} == {
        tag: (version, manifest.digest) for tag, version in versions.items()
    }
    assert {found.publisher for found in stated.values()} == {KEY.fingerprint}


def test_a_rolled_back_tag_is_stated_as_newer_than_what_it_named_before(shelf: Shelf, manifest: Descriptor) -> None:
    other = shelf.variant(manifest, 1)
    shelf.publish("tiny", "latest", manifest)
    newer = shelf.publish("tiny", "latest", other)
    shelf.store.retag("tiny", "latest", None, Author())
    assert statements(shelf, manifest.digest)["latest"].version > newer.version


def test_statements_are_renewed_at_half_of_their_life_with_the_same_version(shelf: Shelf, manifest: Descriptor) -> None:
    published = shelf.publish("tiny", "latest", manifest)
    now = datetime.now(UTC)
    assert shelf.store.renew_signatures(now + LIFETIME / 2 - timedelta(minutes=1)) == 0
    later = now + LIFETIME / 2 + timedelta(minutes=1)
    assert shelf.store.renew_signatures(later) == 1
    assert shelf.store.renew_signatures(later) == 0
    renewed = statements(shelf, manifest.digest)["latest"]
    assert renewed.version == published.version
    assert abs(renewed.expires_at - later - LIFETIME) < timedelta(seconds=2)


def test_after_a_rotation_everything_is_signed_by_the_new_key(shelf: Shelf, manifest: Descriptor) -> None:
    shelf.publish("tiny", "latest", manifest)
    new = Ed25519PrivateKey.from_private_bytes(b"n" * 32)
    now = datetime.now(UTC)
    key = SigningKey(new, (sign_rotation(KEY.private, new, at=now),))
    store = BundleStore(shelf.engine, shelf.layout, shelf.folder / "reports", BundleSigner(shelf.layout, key))
    assert store.renew_signatures(now) == 1
    assert statements(shelf, manifest.digest)["latest"].publisher == key.fingerprint
    (artifact,) = shelf.catalog.signatures_of("tiny", manifest.digest)
    layers = json.loads(shelf.layout.blob_path(artifact.digest).read_bytes())["layers"]
    assert len(layers) == 2  # the statement, and how the key came to be


def test_a_bundle_that_no_tag_names_is_never_stated_as_the_newest_again(shelf: Shelf, manifest: Descriptor) -> None:
    shelf.publish("tiny", "latest", manifest)
    shelf.publish("tiny", "latest", shelf.variant(manifest, 1))
    assert shelf.store.renew_signatures(datetime.now(UTC) + LIFETIME) == 2
    hexadecimal = manifest.digest.removeprefix("sha256:")
    (stated,) = statements(shelf, manifest.digest).values()
    assert (stated.tag, stated.digest) == (f"sha256-{hexadecimal[:12]}", manifest.digest)
