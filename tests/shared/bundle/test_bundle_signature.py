"""Signatures: deterministic, bound to one digest and one context, readable for ever."""

from __future__ import annotations

import base64
import json
import resource
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from shared.bundle.layout import ImageLayout
from shared.bundle.manifest import MAX_MANIFEST_BYTES
from shared.bundle.signature import load_or_create_key, publish_signature, sign, signature_tag, verify
from shared.errors import DiskError, InvalidRequest, SignatureInvalid

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
DIGEST = "sha256:" + "ab" * 32
OTHER = "sha256:" + "cd" * 32
GOLDEN_FINGERPRINT = "ed25519:56475aa75463474c0285df5dbf2bcab73da651358839e9b77481b2eab107708c"


def altered(**changes: str) -> bytes:
    return json.dumps(json.loads(sign(KEY, DIGEST).to_bytes()) | changes).encode()


def test_a_signature_verifies_and_names_its_key():
    assert verify(sign(KEY, DIGEST).to_bytes(), DIGEST).fingerprint == GOLDEN_FINGERPRINT


def test_signing_is_deterministic():
    assert sign(KEY, DIGEST) == sign(KEY, DIGEST)


def test_the_signed_bytes_are_the_documented_ones():
    message = f"zo-device bundle signature v1\n{DIGEST}\n".encode()
    KEY.public_key().verify(base64.b64decode(sign(KEY, DIGEST).signature), message)


@pytest.mark.parametrize(
    "data",
    [
        b"{}",
        b"no json",
        altered(manifest=OTHER),
        altered(algorithm="none"),
        altered(signature="!"),
        altered(signature=base64.b64encode(bytes(64)).decode()),
        altered(public_key=base64.b64encode(bytes(31)).decode()),
        altered(public_key=base64.b64encode(Ed25519PrivateKey.generate().public_key().public_bytes_raw()).decode()),
        altered(extra="field"),
        sign(KEY, OTHER).to_bytes(),
    ],
)
def test_anything_else_is_refused(data):
    with pytest.raises(SignatureInvalid):
        verify(data, DIGEST)


def test_a_signature_is_published_as_an_artifact_beside_the_bundle(tmp_path):
    layout = ImageLayout.create(tmp_path)
    bundle = layout.add_bytes(b"{}", "application/vnd.oci.image.manifest.v1+json")
    artifact = publish_signature(layout, bundle, sign(KEY, bundle.digest))
    manifest = json.loads(layout.read_blob(artifact.digest, max_bytes=MAX_MANIFEST_BYTES))
    assert manifest["artifactType"] == "application/vnd.zo-device.signature.v1+json"
    [layer] = manifest["layers"]
    assert verify(layout.read_blob(layer["digest"], max_bytes=layer["size"]), bundle.digest)
    assert signature_tag(bundle.digest) == bundle.digest.replace(":", "-") + ".sig"


def test_a_key_is_made_once_for_the_owner_alone_and_found_again(tmp_path):
    path = tmp_path / "keys" / "signing.pem"
    made, found = load_or_create_key(path), load_or_create_key(path)
    assert made.private_bytes_raw() == found.private_bytes_raw()
    assert path.stat().st_mode & 0o777 == 0o600


def test_processes_that_make_a_key_at_the_same_time_get_the_same_one(tmp_path):
    path = tmp_path / "signing.pem"
    barrier = threading.Barrier(8)

    def make(_: int) -> bytes:
        barrier.wait()
        return load_or_create_key(path).private_bytes_raw()

    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(make, range(8)))
    assert keys == {load_or_create_key(path).private_bytes_raw()}
    assert [entry.name for entry in tmp_path.iterdir()] == ["signing.pem"]


def test_a_key_that_cannot_be_written_whole_leaves_nothing_behind(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, hard))
    try:
        with pytest.raises(DiskError, match="no space left"):
            load_or_create_key(tmp_path / "signing.pem")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [
        b"no key",
        generate_private_key(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    ],
    ids=["no_key", "key_of_another_kind"],
)
def test_a_file_without_an_ed25519_key_is_refused(tmp_path, content):
    path = tmp_path / "signing.pem"
    path.write_bytes(content)
    with pytest.raises(InvalidRequest, match="Ed25519"):
        load_or_create_key(path)
