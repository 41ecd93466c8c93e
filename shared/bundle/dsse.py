"""DSSE envelopes: a payload, its type and signatures over both, as other tools of the supply chain read them.

    {"payload": base64, "payloadType": text, "signatures": [{"keyid": text, "sig": base64}]}
    signed bytes = "DSSEv1" SP len(type) SP type SP len(payload) SP payload         lengths in bytes, decimal

The type is inside what is signed, so that a signature over one kind of payload is none over another. ``keyid`` is a
hint that nothing here relies on; ours is the key's fingerprint. Signatures are Ed25519. Whether a key is to be trusted
is decided elsewhere.
References: DSSE 1.0.2 (github.com/secure-systems-lab/dsse: protocol.md, envelope.md); RFC 8032.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Annotated

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import BaseModel, ConfigDict, Field

from shared.bundle.documents import parse_document
from shared.bundle.signature import fingerprint_of
from shared.errors import SignatureInvalid

ENVELOPE_MEDIA_TYPE = "application/vnd.dsse.envelope.v1+json"
MAX_ENVELOPE_BYTES = 4096
MAX_SIGNATURES = 8


class _Signature(BaseModel):
    model_config = ConfigDict(strict=True)  # as DSSE demands, unknown fields are ignored

    sig: str


class _Envelope(BaseModel):
    model_config = ConfigDict(strict=True)

    payload: str
    payload_type: Annotated[str, Field(alias="payloadType")]
    signatures: Annotated[list[_Signature], Field(min_length=1, max_length=MAX_SIGNATURES)]


@dataclass(frozen=True, slots=True)
class Envelope:
    """An opened envelope; nothing about it is proven before ``check_signed_by``.

    Attributes:
        payload_type: How the payload is to be read.
        payload: What was signed.
        signatures: Raw signatures, each perhaps by another key.
    """

    payload_type: str
    payload: bytes
    signatures: tuple[bytes, ...]

    def check_signed_by(self, public_key: bytes) -> None:
        """Do nothing where one of the signatures is by that raw Ed25519 key.

        Raises:
            SignatureInvalid: None is.
        """
        message = pre_authentication_encoding(self.payload_type, self.payload)
        if not any(_is_signature(public_key, signature, message) for signature in self.signatures):
            raise SignatureInvalid(
                f"no signature of the envelope matches the key {fingerprint_of(public_key)}",
                next_step="do not use this bundle; ask its publisher",
            )


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """Return the bytes that are signed (PAE)."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def seal(key: Ed25519PrivateKey, payload_type: str, payload: bytes) -> bytes:
    """Return the envelope of a payload signed by ``key``; the same input gives the same bytes."""
    signature = key.sign(pre_authentication_encoding(payload_type, payload))
    fields = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": payload_type,
        "signatures": [
            {
                "keyid": fingerprint_of(key.public_key().public_bytes_raw()),
                "sig": base64.b64encode(signature).decode(),
            }
        ],
    }
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


def open_envelope(data: bytes, *, payload_type: str) -> Envelope:
    """Return the content of an envelope, which is not verified yet.

    Raises:
        LimitExceeded: It is longer than 4096 bytes.
        SignatureInvalid: It is malformed, or its payload is of another type.
    """
    parsed = parse_document(_Envelope, data, limit=MAX_ENVELOPE_BYTES, what="DSSE envelope", error=SignatureInvalid)
    if parsed.payload_type != payload_type:
        raise SignatureInvalid(f"a payload of type {parsed.payload_type[:80]!r}", needed=payload_type)
    signatures = tuple(_decode(signature.sig) for signature in parsed.signatures)
    return Envelope(parsed.payload_type, _decode(parsed.payload), signatures)


def _is_signature(public_key: bytes, signature: bytes, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _decode(text: str) -> bytes:
    """Return the bytes of standard or URL-safe base64: DSSE allows a producer either."""
    try:
        return base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
    except (binascii.Error, ValueError) as error:
        raise SignatureInvalid("the DSSE envelope holds something that is not base64") from error
