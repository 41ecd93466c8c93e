"""Signatures: deterministic, bound to one digest and one context, readable for ever."""

from __future__ import annotations

import base64
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shared.bundle.layout import ImageLayout
from shared.bundle.manifest import MAX_MANIFEST_BYTES
from shared.bundle.signature import publish_signature, sign, signature_tag, verify
from shared.errors import SignatureInvalid

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
