"""The artifact beside a bundle: its form on the wire, what is fetched of it, and its limits."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shared.bundle.layout import ImageLayout
from shared.bundle.manifest import Descriptor, parse_manifest
from shared.bundle.signature import publish_signature, sign, signature_tag
from shared.bundle.signature_artifact import (
    SignatureDocuments,
    Statements,
    collect_documents,
    documents_beside,
    publish_statements,
    verified_statements,
)
from shared.bundle.statement import SignedRelease, SignedRotation, sign_release, sign_rotation
from shared.errors import InvalidManifest, LimitExceeded, NotFound, SignatureInvalid

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
TIME = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.fixture
def layout(tmp_path: Path) -> ImageLayout:
    return ImageLayout.create(tmp_path / "layout")


@pytest.fixture
def bundle(layout: ImageLayout) -> Descriptor:
    return layout.add_bytes(b"{}", "application/vnd.oci.image.manifest.v1+json")


def release(bundle: Descriptor, tag: str = "latest", version: int = 1) -> SignedRelease:
    return sign_release(KEY, name="tiny", tag=tag, version=version, digest=bundle.digest, expires=TIME)


def rotation(number: int) -> SignedRotation:
    return sign_rotation(KEY, Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32), at=TIME)


def artifact(layout: ImageLayout, bundle: Descriptor, *releases: SignedRelease) -> bytes:
    published = publish_statements(layout, bundle, Statements(releases))
    return layout.read_blob(published.digest, max_bytes=1 << 20)


def changed(data: bytes, **changes: Any) -> bytes:
    return json.dumps(json.loads(data) | changes).encode()


def never(blob: Descriptor) -> bytes:
    pytest.fail(f"{blob.digest} was fetched")


def test_an_artifact_names_its_bundle_as_subject_and_each_layers_tag(layout: ImageLayout, bundle: Descriptor) -> None:
    statements = Statements((release(bundle, "v2"), release(bundle, "_v1")), (rotation(7),))
    published = publish_statements(layout, bundle, statements)
    manifest = json.loads(layout.read_blob(published.digest, max_bytes=1 << 20))
    assert manifest["artifactType"] == "application/vnd.zo-device.release.v1+json"
    assert manifest["subject"] == {
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": bundle.digest,
        "size": 2,
    }
    assert {layer["mediaType"] for layer in manifest["layers"]} == {"application/vnd.dsse.envelope.v1+json"}
    assert [layer["annotations"] for layer in manifest["layers"]] == [
        {"org.opencontainers.image.title": "release-000.dsse.json", "dev.zo-device.release.tag": "_v1"},
        {"org.opencontainers.image.title": "release-001.dsse.json", "dev.zo-device.release.tag": "v2"},
        {"org.opencontainers.image.title": "key-rotation-000.dsse.json"},
    ]


def test_what_was_published_beside_a_bundle_is_found_again(layout: ImageLayout, bundle: Descriptor) -> None:
    assert documents_beside(layout, "tiny", bundle.digest) is None
    statements = Statements((release(bundle),), (rotation(7),))
    layout.tag(f"tiny:{signature_tag(bundle.digest)}", publish_statements(layout, bundle, statements))
    assert verified_statements(documents_beside(layout, "tiny", bundle.digest)) == statements
    assert documents_beside(layout, "other", bundle.digest) is None


def test_a_signature_of_the_older_type_is_still_read(layout: ImageLayout, bundle: Descriptor) -> None:
    signature = sign(KEY, bundle.digest)
    layout.tag(f"tiny:{signature_tag(bundle.digest)}", publish_signature(layout, bundle, signature))
    documents = documents_beside(layout, "tiny", bundle.digest)
    assert documents == SignatureDocuments(old_signature=signature.to_bytes())
    assert verified_statements(documents) == Statements()


def test_of_many_tags_only_the_one_asked_for_is_fetched(layout: ImageLayout, bundle: Descriptor) -> None:
    releases = [release(bundle, f"v{number}") for number in range(100)]
    fetched = []

    def fetch(blob: Descriptor) -> bytes:
        fetched.append(blob.digest)
        return layout.read_blob(blob.digest, max_bytes=blob.size)

    documents = collect_documents(artifact(layout, bundle, *releases), fetch, tag="v42")
    assert documents.releases == (releases[42].envelope,)
    assert len(fetched) == 1


def test_a_newer_statement_takes_the_place_of_the_one_for_its_tag(bundle: Descriptor) -> None:
    first, other, second = release(bundle, version=1), release(bundle, "v1"), release(bundle, version=2)
    joined = Statements((first, other), (rotation(1),)).joined(Statements((second,), (rotation(1), rotation(2))))
    assert set(joined.releases) == {second, other}
    assert joined.rotations == (rotation(1), rotation(2))


def test_of_many_rotations_the_last_sixteen_are_carried_on(bundle: Descriptor) -> None:
    joined = Statements(rotations=tuple(map(rotation, range(16)))).joined(Statements(rotations=(rotation(16),)))
    assert joined.rotations == tuple(map(rotation, range(1, 17)))


def test_a_bundle_has_no_subject(layout: ImageLayout, bundle: Descriptor) -> None:
    data = changed(artifact(layout, bundle, release(bundle)), artifactType="application/vnd.zo-device.bundle.v1+json")
    with pytest.raises(InvalidManifest, match="subject"):
        parse_manifest(data)


@pytest.mark.parametrize(
    "kind", ["application/vnd.zo-device.bundle.v1+json", "application/vnd.zo-device.release.v2+json"]
)
def test_an_artifact_of_another_type_holds_no_signatures(layout: ImageLayout, bundle: Descriptor, kind: str) -> None:
    with pytest.raises(SignatureInvalid, match="artifact of type"):
        collect_documents(changed(artifact(layout, bundle, release(bundle)), artifactType=kind), never)


def test_an_incomplete_artifact_is_an_error_not_an_unsigned_bundle(layout: ImageLayout, bundle: Descriptor) -> None:
    published = publish_statements(layout, bundle, Statements((release(bundle),)))
    layout.tag(f"tiny:{signature_tag(bundle.digest)}", published)
    layout.blob_path(json.loads(layout.blob_path(published.digest).read_bytes())["layers"][0]["digest"]).unlink()
    with pytest.raises(NotFound):
        documents_beside(layout, "tiny", bundle.digest)


@pytest.mark.attack
def test_endless_artifacts_statements_and_counts_of_them_are_refused_before_anything_is_fetched(
    layout: ImageLayout, bundle: Descriptor
) -> None:
    data = artifact(layout, bundle, release(bundle))
    with pytest.raises(LimitExceeded, match="65536"):
        collect_documents(data + b" " * 65536, never)
    (layer,) = json.loads(data)["layers"]
    with pytest.raises(LimitExceeded, match="signature of 4097 bytes"):
        collect_documents(changed(data, layers=[layer | {"size": 4097}]), never)
    many = [layer | {"annotations": {"org.opencontainers.image.title": f"k{number}"}} for number in range(17)]
    with pytest.raises(LimitExceeded, match="17 key rotations"):
        collect_documents(changed(data, layers=many), never)
    tagged = [
        layer | {"annotations": {"org.opencontainers.image.title": f"r{number}", "dev.zo-device.release.tag": "t"}}
        for number in range(101)
    ]
    with pytest.raises(LimitExceeded, match="101 release statements"):
        collect_documents(changed(data, layers=tagged), never, tag="latest")


def test_more_statements_than_a_reader_accepts_are_not_published(layout: ImageLayout, bundle: Descriptor) -> None:
    releases = tuple(release(bundle, f"v{number}") for number in range(101))
    with pytest.raises(LimitExceeded, match="at most 100"):
        publish_statements(layout, bundle, Statements(releases))
