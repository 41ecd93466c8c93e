"""What is published, and what stays invisible."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloud_service.storage.bundles import BundleStore
from shared.bundle.layout import ImageLayout
from shared.bundle.manifest import Descriptor, parse_manifest
from shared.bundle.signature import signature_tag, verify
from shared.errors import DigestMismatch, NotFound


@pytest.fixture
def store(tmp_path: Path, tiny_bundle: Any) -> BundleStore:
    """A store that has the tiny bundle's blobs, none of them published."""
    shutil.copytree(tiny_bundle.layout.root, tmp_path / "store")
    (tmp_path / "store" / "index.json").unlink()
    return BundleStore(ImageLayout(tmp_path / "store"), tmp_path / "reports", Ed25519PrivateKey.generate())


@pytest.fixture
def manifest(tiny_bundle: Any) -> Descriptor:
    descriptor: Descriptor = tiny_bundle.layout.resolve(tiny_bundle.reference)
    return descriptor


def publish(store: BundleStore, name: str, tag: str, manifest: Descriptor) -> None:
    store.publish(name, tag, manifest, store.sign(manifest))


def test_nothing_is_visible_until_it_is_published(store: BundleStore, manifest: Descriptor) -> None:
    store.sign(manifest)
    assert store.summaries() == []
    for reference in ("latest", manifest.digest):
        with pytest.raises(NotFound):
            store.manifest("tiny", reference)
    with pytest.raises(NotFound):
        store.blob("tiny", manifest.digest)


def test_bundle_and_signature_become_visible_in_one_step(store: BundleStore, manifest: Descriptor) -> None:
    publish(store, "team/tiny", "latest", manifest)
    references = store.layout.references()
    assert set(references) == {"team/tiny:latest", f"team/tiny:{signature_tag(manifest.digest)}"}
    artifact = store.manifest("team/tiny", signature_tag(manifest.digest))
    assert artifact.path.is_file()
    assert [summary.tag for summary in store.summaries()] == ["latest"]


def test_a_name_gives_only_its_own_blobs(store: BundleStore, manifest: Descriptor) -> None:
    publish(store, "tiny", "latest", manifest)
    blob = parse_manifest(store.layout.blob_path(manifest.digest).read_bytes()).layers[0].digest
    assert store.blob("tiny", blob).path.is_file()
    for name, digest in [("other", blob), ("tiny", "sha256:" + "0" * 64), ("tiny", "../../index.json")]:
        with pytest.raises(NotFound):
            store.blob(name, digest)


def test_a_digest_stays_readable_when_its_tag_moves_on(store: BundleStore, manifest: Descriptor) -> None:
    publish(store, "tiny", "latest", manifest)
    other = store.layout.add_bytes(
        store.layout.blob_path(manifest.digest).read_bytes().replace(b'"layers":[', b'"layers": [', 1),
        manifest.media_type,
    )
    store.publish("tiny", "latest", other, store.sign(other))
    assert store.manifest("tiny", "latest").digest == other.digest
    assert store.manifest("tiny", manifest.digest).digest == manifest.digest


def test_a_damaged_bundle_is_not_signed(store: BundleStore, manifest: Descriptor) -> None:
    largest = max(store.layout.blobs.iterdir(), key=lambda path: path.stat().st_size)
    damaged = bytearray(largest.read_bytes())
    damaged[-1] ^= 1
    largest.write_bytes(damaged)
    with pytest.raises(DigestMismatch):
        store.sign(manifest)


def test_publishing_again_gives_the_same_bytes(store: BundleStore, manifest: Descriptor) -> None:
    publish(store, "tiny", "latest", manifest)
    index = (store.layout.root / "index.json").read_bytes()
    publish(store, "tiny", "latest", manifest)
    assert (store.layout.root / "index.json").read_bytes() == index


def test_the_signature_that_is_served_verifies(store: BundleStore, manifest: Descriptor) -> None:
    publish(store, "tiny", "latest", manifest)
    document = next(
        data for path in store.layout.blobs.iterdir() if (data := path.read_bytes()).startswith(b'{"algorithm"')
    )
    assert verify(document, manifest.digest).manifest == manifest.digest


def test_a_summary_tells_what_the_configuration_says(store: BundleStore, manifest: Descriptor) -> None:
    publish(store, "tiny", "v1", manifest)
    store.add_report(manifest.digest, b"<p>")
    (summary,) = store.summaries()
    # 14 quantised weights of 8 sensitive values each; see tests/support/tiny_bundle.py.
    assert summary.sensitive_count == 14 * 8
    assert summary.digest == manifest.digest
    assert summary.report_url == f"/v1/bundles/tiny/report?reference={manifest.digest}"


@pytest.mark.parametrize("tag", ["v1.sig", "sha256-.sig", "sha256-" + "0" * 63 + ".sig", "sha512-" + "0" * 64 + ".sig"])
def test_a_tag_that_only_looks_like_a_signatures_hides_nothing(
    store: BundleStore, manifest: Descriptor, tag: str
) -> None:
    publish(store, "tiny", "latest", manifest)
    store.layout.tag(f"odd:{tag}", manifest)
    assert store.manifest("tiny", "latest").digest == manifest.digest
    assert [summary.name for summary in store.summaries()] == ["tiny"]
