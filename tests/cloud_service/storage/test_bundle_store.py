"""What is published, and what stays invisible."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path

import pytest
from shelf import Shelf

from cloud_service.storage.audit import Author
from cloud_service.storage.database import writing
from shared.bundle.manifest import Descriptor, parse_manifest
from shared.bundle.signature import signature_tag, verify
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
    document = shelf.catalog.blob("tiny", layer["digest"]).path.read_bytes()
    assert verify(document, manifest.digest).manifest == manifest.digest


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


def test_publishing_again_changes_neither_what_is_listed_nor_what_is_stored(shelf: Shelf, manifest: Descriptor) -> None:
    shelf.publish("tiny", "latest", manifest)
    listed, stored = shelf.catalog.page(), sorted(shelf.layout.blobs.iterdir())
    shelf.publish("tiny", "latest", manifest)
    assert (shelf.catalog.page(), sorted(shelf.layout.blobs.iterdir())) == (listed, stored)


def test_a_summary_tells_what_the_configuration_says(shelf: Shelf, manifest: Descriptor, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("<p>")
    shelf.store.add_report(manifest.digest, tmp_path / "page.html")
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
