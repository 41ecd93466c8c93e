"""What a publisher signs: its form, its limits, and bytes that must verify for ever."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shared.bundle.dsse import seal
from shared.bundle.statement import (
    RELEASE_TYPE,
    ROTATION_TYPE,
    SignedRelease,
    format_time,
    sign_release,
    sign_rotation,
    verify_release,
    verify_rotation,
)
from shared.errors import SignatureInvalid

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
PUBLISHER = "ed25519:56475aa75463474c0285df5dbf2bcab73da651358839e9b77481b2eab107708c"
DIGEST = "sha256:" + "ab" * 32
TIME = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
PAYLOAD = (
    b'{"digest":"sha256:abababababababababababababababababababababababababababababababab",'
    b'"expires":"2030-01-02T03:04:05Z","name":"swap/stories",'
    b'"public_key":"A6EHv/POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg=","tag":"latest","version":7}'
)
SIGNATURE = "OPKQGZPIBeOYpBNU17yaW0jcen1674JYm5HuQTeeuzbW9kus1JINqZ8s+10r9hbT5PPRuAau5sxAI/IkpjX+CA=="
GOLDEN = (
    b'{"payload":"%b","payloadType":"application/vnd.zo-device.release.v1+json","signatures":[{"keyid":"%b","sig":"%b"}]}'
    % (base64.b64encode(PAYLOAD), PUBLISHER.encode(), SIGNATURE.encode())
)
ROTATION = (
    b'{"payload":"eyJhdCI6IjIwMzAtMDEtMDJUMDM6MDQ6MDVaIiwibmV3X3B1YmxpY19rZXkiOiJlYlZXTG8vbVZQbEFlTEVTNkttTHA1QWZoVHJt'
    b'bGI3WDRPT1JDNjBFbG1RPSIsIm9sZF9wdWJsaWNfa2V5IjoiQTZFSHYvUE9FTDRkY04wWTUwdkFtV2ZrMWpDYnBRMWZIZHlHWkJKVk1iZz0ifQ==",'
    b'"payloadType":"application/vnd.zo-device.key-rotation.v1+json","signatures":[{"keyid":'
    b'"ed25519:56475aa75463474c0285df5dbf2bcab73da651358839e9b77481b2eab107708c","sig":'
    b'"MJHvuc7yPSkfzMCAdtz87y5n8oSL2pGHaD4Owzg/MmaYjUsHtpB624yJu0BT+dMufdq8J9D4xQA7XJifX0NBBA=="}]}'
)


def release(**changes: Any) -> SignedRelease:
    fields = {"name": "swap/stories", "tag": "latest", "version": 7, "digest": DIGEST, "expires": TIME}
    return sign_release(KEY, **{**fields, **changes})


def sealed(kind: str = RELEASE_TYPE, **changes: Any) -> bytes:
    """A payload that the key has signed, whatever it says."""
    return seal(KEY, kind, json.dumps(json.loads(PAYLOAD) | changes).encode())


def test_a_release_is_signed_as_these_bytes_for_ever() -> None:
    assert release().envelope == GOLDEN
    statement = verify_release(GOLDEN).statement
    assert (statement.name, statement.tag, statement.version) == ("swap/stories", "latest", 7)
    assert (statement.digest, statement.expires_at, statement.publisher) == (DIGEST, TIME, PUBLISHER)


def test_a_rotation_is_signed_by_the_old_key_as_these_bytes_for_ever() -> None:
    assert sign_rotation(KEY, OTHER_KEY, at=TIME).envelope == ROTATION
    rotation = verify_rotation(ROTATION).rotation
    assert rotation.old == PUBLISHER
    assert rotation.new == release_by(OTHER_KEY).statement.publisher


def release_by(key: Ed25519PrivateKey) -> SignedRelease:
    return sign_release(key, name="tiny", tag="latest", version=1, digest=DIGEST, expires=TIME)


def test_times_are_written_in_utc_to_the_second() -> None:
    elsewhere = datetime(2030, 1, 2, 5, 4, 5, 999_999, tzinfo=timezone(timedelta(hours=2)))
    assert format_time(elsewhere) == "2030-01-02T03:04:05Z"


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "../stories"},
        {"name": "a" * 201},
        {"tag": "sha256-ab.sig"},
        {"tag": "a b"},
        {"version": 0},
        {"version": 2**53},
        {"version": "7"},
        {"version": True},
        {"version": 7.0},
        {"digest": "sha256:AB"},
        {"expires": "2030-02-30T00:00:00Z"},
        {"expires": "2030-01-02T03:04:05+02:00"},
        {"expires": "2030-01-02"},
        {"expires": "٢٠٣٠-01-02T03:04:05Z"},
        {"public_key": "AAAA"},
        {"public_key": "!"},
        {"further": 1},
    ],
    ids=str,
)
def test_a_statement_of_another_form_is_refused_although_it_is_signed(changes: dict[str, Any]) -> None:
    with pytest.raises(SignatureInvalid, match="release statement"):
        verify_release(sealed(**changes))


@pytest.mark.parametrize("field", ["name", "tag", "version", "digest", "expires", "public_key"])
def test_no_field_of_a_statement_may_be_absent(field: str) -> None:
    fields = json.loads(PAYLOAD)
    del fields[field]
    with pytest.raises(SignatureInvalid, match=field):
        verify_release(seal(KEY, RELEASE_TYPE, json.dumps(fields).encode()))


def test_no_field_of_a_statement_may_occur_twice() -> None:
    with pytest.raises(SignatureInvalid, match="a key occurs twice"):
        verify_release(seal(KEY, RELEASE_TYPE, PAYLOAD.replace(b'"version":7', b'"version":7,"version":8')))


def test_a_statement_that_another_key_signed_than_it_names_is_refused() -> None:
    with pytest.raises(SignatureInvalid, match="no signature of the envelope"):
        verify_release(seal(OTHER_KEY, RELEASE_TYPE, PAYLOAD))


@pytest.mark.attack
def test_a_rotation_that_the_new_key_signed_is_refused() -> None:
    payload = base64.b64decode(json.loads(ROTATION)["payload"])
    with pytest.raises(SignatureInvalid, match="no signature of the envelope"):
        verify_rotation(seal(OTHER_KEY, ROTATION_TYPE, payload))


def test_a_release_is_no_rotation_and_a_rotation_no_release() -> None:
    with pytest.raises(SignatureInvalid, match="payload of type"):
        verify_rotation(GOLDEN)
    with pytest.raises(SignatureInvalid, match="payload of type"):
        verify_release(ROTATION)
