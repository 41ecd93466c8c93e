"""DSSE envelopes: what the specification says, checked with an encoding written again here by hand."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from shared.bundle.dsse import open_envelope, pre_authentication_encoding, seal
from shared.errors import LimitExceeded, SignatureInvalid

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
PUBLIC = KEY.public_key().public_bytes_raw()
TYPE = "application/vnd.zo-device.test+json"
PAYLOAD = b'{"a":1}'


def encoding_by_hand(kind: bytes, body: bytes) -> bytes:
    """PAE of protocol.md, written without the code under test."""
    return b" ".join([b"DSSEv1", str(len(kind)).encode(), kind, str(len(body)).encode(), body])


def envelope(**changes: Any) -> bytes:
    return json.dumps(json.loads(seal(KEY, TYPE, PAYLOAD)) | changes).encode()


def test_the_encoding_is_the_test_vector_of_the_specification() -> None:
    encoded = pre_authentication_encoding("http://example.com/HelloWorld", b"hello world")
    assert encoded == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"


@given(st.text(max_size=50).filter(lambda text: text.isprintable()), st.binary(max_size=200))
def test_lengths_are_counted_in_bytes(kind: str, body: bytes) -> None:
    assert pre_authentication_encoding(kind, body) == encoding_by_hand(kind.encode(), body)


def test_another_tool_that_knows_the_specification_verifies_an_envelope() -> None:
    parsed = json.loads(seal(KEY, TYPE, PAYLOAD))
    assert set(parsed) == {"payload", "payloadType", "signatures"}
    body = base64.standard_b64decode(parsed["payload"])
    (signature,) = parsed["signatures"]
    KEY.public_key().verify(
        base64.standard_b64decode(signature["sig"]), encoding_by_hand(parsed["payloadType"].encode(), body)
    )
    assert body == PAYLOAD


def test_an_envelope_opens_and_proves_its_key() -> None:
    opened = open_envelope(seal(KEY, TYPE, PAYLOAD), payload_type=TYPE)
    opened.check_signed_by(PUBLIC)
    assert opened.payload == PAYLOAD


def test_url_safe_base64_unknown_fields_no_keyid_and_further_signatures_are_read() -> None:
    signature = json.loads(seal(KEY, TYPE, PAYLOAD))["signatures"][0]["sig"]
    of_another = json.loads(seal(OTHER_KEY, TYPE, PAYLOAD))["signatures"][0]
    url_safe = signature.replace("+", "-").replace("/", "_")
    assert url_safe != signature
    data = envelope(signatures=[of_another | {"extension": {}}, {"sig": url_safe}], comment="of a newer version")
    open_envelope(data, payload_type=TYPE).check_signed_by(PUBLIC)


def test_the_keyid_proves_nothing() -> None:
    forged = json.loads(seal(OTHER_KEY, TYPE, PAYLOAD))["signatures"][0]
    claimed = forged | {"keyid": json.loads(seal(KEY, TYPE, PAYLOAD))["signatures"][0]["keyid"]}
    with pytest.raises(SignatureInvalid, match="no signature of the envelope"):
        open_envelope(envelope(signatures=[claimed]), payload_type=TYPE).check_signed_by(PUBLIC)


def test_a_changed_payload_is_not_what_was_signed() -> None:
    changed = base64.b64encode(b'{"a":2}').decode()
    with pytest.raises(SignatureInvalid):
        open_envelope(envelope(payload=changed), payload_type=TYPE).check_signed_by(PUBLIC)


def test_a_signature_over_one_type_is_none_over_another() -> None:
    with pytest.raises(SignatureInvalid, match="payload of type"):
        open_envelope(envelope(), payload_type="application/vnd.zo-device.other+json")
    relabelled = envelope(payloadType="application/vnd.zo-device.other+json")
    opened = open_envelope(relabelled, payload_type="application/vnd.zo-device.other+json")
    with pytest.raises(SignatureInvalid, match="no signature of the envelope"):
        opened.check_signed_by(PUBLIC)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"\xff",
        b"{" * 1000,
        b'{"payload":"","payload":"","payloadType":"","signatures":[]}',
        envelope(signatures=[]),
        envelope(signatures=[{"sig": "AAAA"}] * 9),
        envelope(signatures=[{"keyid": "none"}]),
        envelope(signatures=[{"sig": "!"}]),
        envelope(payload="é"),
        envelope(payload=1),
    ],
    ids=lambda data: data[:40].decode(errors="replace"),
)
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(SignatureInvalid):
        open_envelope(data, payload_type=TYPE)


@pytest.mark.attack
def test_an_endless_envelope_is_cut_off() -> None:
    with pytest.raises(LimitExceeded, match="4096"):
        open_envelope(envelope(comment="x" * 4096), payload_type=TYPE)
