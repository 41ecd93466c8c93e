"""What a publisher signs: that a name and tag mean a digest until a time, and that a new key takes an old one's place.

    release        name, tag, version, digest, expires, public_key         signed by public_key
    key rotation   old_public_key, new_public_key, at                      signed by old_public_key

``version`` only grows for one name and tag, so a reader that remembers the last one cannot be given an older bundle;
``expires`` ends the time for which a reader can be kept from newer ones. Each is canonical JSON in a DSSE envelope. A
statement that was verified is one that the key it names has signed: whose key that is, and whether name, age and
version are right, is decided elsewhere. Knows nothing about files, servers or clocks.
References: The Update Framework 1.0, roles timestamp and root.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import AfterValidator, Field

from shared.api import BundleName, Tag
from shared.bundle.digest import Digest
from shared.bundle.documents import Document, parse_document
from shared.bundle.dsse import MAX_ENVELOPE_BYTES, open_envelope, seal
from shared.bundle.signature import fingerprint_of
from shared.errors import SignatureInvalid

RELEASE_TYPE = "application/vnd.zo-device.release.v1+json"
ROTATION_TYPE = "application/vnd.zo-device.key-rotation.v1+json"
MAX_VERSION = 2**53 - 1
"""The largest integer that every JSON reader keeps exactly."""

_TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"


def _public_key(text: str) -> str:
    try:
        raw = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError("a public key that is not base64") from error
    if len(raw) != 32:
        raise ValueError(f"a public key of {len(raw)} bytes instead of 32")
    return text


def _time(text: str) -> str:
    parse_time(text)
    return text


PublicKey = Annotated[str, Field(max_length=64), AfterValidator(_public_key)]
Time = Annotated[str, Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$"), AfterValidator(_time)]


class ReleaseStatement(Document):
    """A name and tag mean one bundle.

    Attributes:
        name: The bundle's name.
        tag: The tag.
        version: Grows with every publication under the name and tag.
        digest: The manifest's digest.
        expires: UTC, to the second; after it, a reader must not take this for the newest any more.
        public_key: The publisher's raw Ed25519 key in base64.
    """

    name: BundleName
    tag: Tag
    version: Annotated[int, Field(ge=1, le=MAX_VERSION)]
    digest: Digest
    expires: Time
    public_key: PublicKey

    @property
    def expires_at(self) -> datetime:
        """When it expires, as an aware datetime."""
        return parse_time(self.expires)

    @property
    def publisher(self) -> str:
        """The fingerprint of the publisher's key."""
        return fingerprint_of(base64.b64decode(self.public_key))


class KeyRotation(Document):
    """A publisher's key takes the place of another one.

    Attributes:
        old_public_key: The raw Ed25519 key in base64 that signs this and nothing after it.
        new_public_key: The one that signs from then on.
        at: When that was decided, UTC.
    """

    old_public_key: PublicKey
    new_public_key: PublicKey
    at: Time

    @property
    def old(self) -> str:
        """The fingerprint of the old key."""
        return fingerprint_of(base64.b64decode(self.old_public_key))

    @property
    def new(self) -> str:
        """The fingerprint of the new key."""
        return fingerprint_of(base64.b64decode(self.new_public_key))


@dataclass(frozen=True, slots=True)
class SignedRelease:
    """A statement and the envelope that proves that its key has signed it."""

    statement: ReleaseStatement
    envelope: bytes


@dataclass(frozen=True, slots=True)
class SignedRotation:
    """A rotation and the envelope that proves that the old key has signed it."""

    rotation: KeyRotation
    envelope: bytes


def sign_release(
    key: Ed25519PrivateKey, *, name: str, tag: str, version: int, digest: str, expires: datetime
) -> SignedRelease:
    """Return the signed statement that ``name:tag`` means ``digest``; the same input gives the same bytes.

    Raises:
        ValidationError: A field has another form (pydantic's).
    """
    statement = ReleaseStatement(
        name=name,
        tag=tag,
        version=version,
        digest=digest,
        expires=format_time(expires),
        public_key=encode_public_key(key),
    )
    return SignedRelease(statement, seal(key, RELEASE_TYPE, statement.to_bytes()))


def sign_rotation(old: Ed25519PrivateKey, new: Ed25519PrivateKey, *, at: datetime) -> SignedRotation:
    """Return the statement, signed by the old key, that the new one takes its place."""
    rotation = KeyRotation(
        old_public_key=encode_public_key(old), new_public_key=encode_public_key(new), at=format_time(at)
    )
    return SignedRotation(rotation, seal(old, ROTATION_TYPE, rotation.to_bytes()))


def verify_release(data: bytes) -> SignedRelease:
    """Return the release statement in an envelope if the key that it names has signed it.

    Raises:
        LimitExceeded: The envelope is too long.
        SignatureInvalid: It is malformed, of another type, or not signed by its key.
    """
    envelope = open_envelope(data, payload_type=RELEASE_TYPE)
    statement = parse_document(
        ReleaseStatement, envelope.payload, limit=MAX_ENVELOPE_BYTES, what="release statement", error=SignatureInvalid
    )
    envelope.check_signed_by(base64.b64decode(statement.public_key))
    return SignedRelease(statement, data)


def verify_rotation(data: bytes) -> SignedRotation:
    """Return the key rotation in an envelope if the old key has signed it.

    Raises:
        LimitExceeded: The envelope is too long.
        SignatureInvalid: It is malformed, of another type, or not signed by the old key.
    """
    envelope = open_envelope(data, payload_type=ROTATION_TYPE)
    rotation = parse_document(
        KeyRotation, envelope.payload, limit=MAX_ENVELOPE_BYTES, what="key rotation", error=SignatureInvalid
    )
    envelope.check_signed_by(base64.b64decode(rotation.old_public_key))
    return SignedRotation(rotation, data)


def encode_public_key(key: Ed25519PrivateKey) -> str:
    """Return the raw public key in standard base64, as statements name it."""
    return base64.b64encode(key.public_key().public_bytes_raw()).decode()


def format_time(time: datetime) -> str:
    """Return an aware time as statements write it: UTC, without fractions of a second."""
    return time.astimezone(UTC).strftime(_TIME_FORMAT)


def parse_time(text: str) -> datetime:
    """Return the aware time that a statement names. Raises ValueError where it is none, such as a 30 February."""
    return datetime.strptime(text, _TIME_FORMAT).replace(tzinfo=UTC)
