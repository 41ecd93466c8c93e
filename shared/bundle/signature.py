"""Detached Ed25519 signatures over a manifest's digest: the older kind, which proves neither a name nor an age.

Publishers sign statements now (``statement``); these are still read, for bundles from before.
The signed bytes are ``zo-device bundle signature v1``, a line feed, the digest, a line feed: a context string keeps a
signature from being taken for one over something else. The signature is published as an OCI artifact tagged
``sha256-<hex>.sig`` beside the bundle, so that any registry can carry it. Whether a key is to be trusted is decided
elsewhere. References: RFC 8032.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Annotated, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import Field, ValidationError

from shared.api import SIGNATURE_SUFFIX
from shared.bundle.digest import check_digest
from shared.bundle.documents import Document
from shared.bundle.layout import ImageLayout, manifest_descriptor
from shared.bundle.manifest import TITLE_ANNOTATION, Descriptor, Manifest
from shared.errors import SignatureInvalid
from shared.field_errors import first_fault

SIGNATURE_ARTIFACT_TYPE = "application/vnd.zo-device.signature.v1+json"
MAX_SIGNATURE_BYTES = 4096
_CONTEXT = b"zo-device bundle signature v1\n"
_DO_NOT_USE = "do not use this bundle; ask its publisher"


class Signature(Document):
    """A signature document: key and signature in standard base64."""

    algorithm: Literal["ed25519"] = "ed25519"
    manifest: str
    public_key: Annotated[str, Field(max_length=64)]
    signature: Annotated[str, Field(max_length=128)]

    @property
    def fingerprint(self) -> str:
        """``ed25519:`` and the SHA-256 of the public key in hexadecimal: what people compare and devices pin."""
        return fingerprint_of(_decode(self.public_key, "public_key"))


def signature_tag(digest: str) -> str:
    """Return the tag that a bundle's signature is published under."""
    return check_digest(digest).replace(":", "-") + SIGNATURE_SUFFIX


def fingerprint_of(public_key: bytes) -> str:
    """Return the fingerprint of a raw Ed25519 public key."""
    return "ed25519:" + hashlib.sha256(public_key).hexdigest()


def sign(key: Ed25519PrivateKey, digest: str) -> Signature:
    """Return the signature of ``key`` over a manifest digest; Ed25519 is deterministic."""
    return Signature(
        manifest=check_digest(digest),
        public_key=base64.b64encode(key.public_key().public_bytes_raw()).decode(),
        signature=base64.b64encode(key.sign(_CONTEXT + digest.encode() + b"\n")).decode(),
    )


def verify(data: bytes, digest: str) -> Signature:
    """Return the signature document if it is a valid signature over ``digest``, by whichever key it names.

    Raises:
        SignatureInvalid: It is malformed, is over another digest, or does not match its key.
    """
    try:
        document = Signature.model_validate_json(data)
    except ValidationError as error:
        fault = first_fault(error)
        raise SignatureInvalid(
            f"signature document: {fault.found_in(fault.field or 'document')}",
            needed=fault.needed,
            next_step=_DO_NOT_USE,
        ) from error
    if document.manifest != digest:
        raise SignatureInvalid(f"a signature over {document.manifest[:80]}", needed=f"a signature over {digest}")
    try:
        key = Ed25519PublicKey.from_public_bytes(_decode(document.public_key, "public_key"))
        key.verify(_decode(document.signature, "signature"), _CONTEXT + digest.encode() + b"\n")
    except (InvalidSignature, ValueError) as error:
        raise SignatureInvalid(
            f"the signature of {digest} does not match its key {document.public_key}",
            next_step=_DO_NOT_USE,
        ) from error
    return document


def publish_signature(layout: ImageLayout, manifest: Descriptor, signature: Signature) -> Descriptor:
    """Store the signature as an OCI artifact and return its manifest descriptor, ready to be tagged."""
    empty = layout.add_bytes(b"{}", "application/vnd.oci.empty.v1+json")
    layer = layout.add_bytes(signature.to_bytes(), SIGNATURE_ARTIFACT_TYPE)
    layer = layer.model_copy(update={"annotations": {TITLE_ANNOTATION: "signature.json"}})
    data = Manifest(
        artifact_type=SIGNATURE_ARTIFACT_TYPE,
        config=empty,
        layers=[layer],
        annotations={"dev.zo-device.signature.manifest": manifest.digest},
    ).to_bytes()
    return layout.add_bytes(data, manifest_descriptor(data).media_type)


def _decode(text: str, what: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise SignatureInvalid(f"{what} is not base64") from error
