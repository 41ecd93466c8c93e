"""Attacks of The Update Framework's list, each against a device that pulls from a server that carries it out.

Every byte that these servers send is one that some publisher has signed; what is wrong is which, when, or for whom.
"""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from simulated_server import (
    KEY,
    OTHER_KEY,
    Answer,
    SimulatedServer,
    fingerprint,
    instead,
    sign_reference,
    sign_the_old_way,
)

from shared.bundle.layout import ImageLayout
from shared.bundle.manifest import MANIFEST_MEDIA_TYPE, Descriptor
from shared.bundle.signature import signature_tag
from shared.bundle.statement import SignedRotation, sign_rotation
from shared.errors import (
    DigestMismatch,
    Equivocated,
    IntegrityError,
    LimitExceeded,
    OtherName,
    PublisherChanged,
    RolledBack,
    SignatureInvalid,
    SignatureMissing,
    StatementExpired,
    StatementMissing,
    ZoError,
)

pytestmark = pytest.mark.attack

SOURCE = "http://models.test/tiny"
PUBLISHER, STRANGER = fingerprint(KEY), fingerprint(OTHER_KEY)
NEW_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(2, 34)))
NEW = fingerprint(NEW_KEY)
AT = datetime(2029, 1, 1, tzinfo=UTC)


def another_bundle(layout: ImageLayout, edition: str = "second") -> Descriptor:
    """A bundle of other bytes with the same layers."""
    manifest = json.loads(layout.read_blob(layout.resolve("tiny:latest").digest, max_bytes=1 << 20))
    data = json.dumps(manifest | {"annotations": {"edition": edition}}).encode()
    return layout.add_bytes(data, MANIFEST_MEDIA_TYPE)


def publish(layout: ImageLayout, reference: str, manifest: Descriptor, **statement: object) -> None:
    layout.tag(reference, manifest)
    sign_reference(layout, reference, **statement)


def carry_signature(layout: ImageLayout, origin: str, name: str) -> None:
    """Serve what lies beside a bundle under another name, as a mirror can."""
    manifest = layout.resolve(origin)
    beside = signature_tag(manifest.digest)
    layout.tag(f"{name}:{beside}", layout.resolve(f"{origin.rpartition(':')[0]}:{beside}"))


def assert_refused(device, error: type[IntegrityError], text: str = "tiny", **options: object) -> None:
    """The pull fails so, no layer was asked for, and neither bundles nor pins change."""
    references, pins = device.layout.references(), device.keys.memory().pins
    server: SimulatedServer = device.transport._servers["http://models.test"]
    sent = server.layer_bytes_sent()
    with pytest.raises(error):
        device.pull(text, **options)
    assert server.layer_bytes_sent() == sent
    assert device.layout.references() == references
    assert device.keys.memory().pins == pins


def test_substitution_a_mirror_serves_another_bundle_of_the_publisher_under_the_pinned_name(device, published) -> None:
    """What was done at 96021a4: ``big`` served as the pinned ``swap/stories``, "verified"."""
    small = published.resolve("tiny:latest")
    publish(published, "swap/stories:latest", small)
    publish(published, "big:latest", another_bundle(published, "big"))
    assert device.pull("swap/stories").publisher == PUBLISHER
    published.tag("swap/stories:latest", published.resolve("big:latest"))
    carry_signature(published, "big:latest", "swap/stories")
    assert_refused(device, OtherName, "swap/stories")


def test_substitution_another_tag_of_the_same_name(device, published) -> None:
    publish(published, "tiny:beta", another_bundle(published))
    device.pull()
    published.tag("tiny:latest", published.resolve("tiny:beta"))
    assert_refused(device, OtherName)


def test_substitution_a_statement_relabelled_for_the_tag_that_was_asked_for(device, server, published) -> None:
    publish(published, "tiny:beta", another_bundle(published))
    published.tag("tiny:latest", published.resolve("tiny:beta"))
    beside = published.resolve(f"tiny:{signature_tag(published.resolve('tiny:beta').digest)}")
    data = published.read_blob(beside.digest, max_bytes=1 << 20)
    relabelled = data.replace(b'"dev.zo-device.release.tag":"beta"', b'"dev.zo-device.release.tag":"latest"')
    assert relabelled != data
    server.misbehave(lambda request: request.path.endswith(".sig"), instead(Answer(200, {}, relabelled)), times=9)
    assert_refused(device, OtherName)


def test_rollback_an_older_bundle_that_was_valid_once(device, published) -> None:
    old = published.resolve("tiny:latest")
    publish(published, "tiny:latest", another_bundle(published), version=2)
    device.pull()
    published.tag("tiny:latest", old)
    assert_refused(device, RolledBack)
    sign_reference(published, "tiny:latest", version=3)
    assert device.pull().digest == old.digest


def test_rollback_is_refused_even_if_the_newer_bundle_was_never_fetched_whole(device, server, published) -> None:
    """The version is remembered before the bundle is believed."""
    old = published.resolve("tiny:latest")
    publish(published, "tiny:latest", another_bundle(published), version=2)
    server.misbehave(lambda request: request.is_for_blob and request.span is not None, instead(Answer(404)), times=999)
    with pytest.raises(ZoError, match="the server has no block"):
        device.pull()
    server.faults.clear()
    published.tag("tiny:latest", old)
    assert_refused(device, RolledBack)


def test_freeze_a_server_that_never_shows_anything_newer(device, published) -> None:
    sign_reference(published, "tiny:latest", expires=device.now)
    device.now += timedelta(minutes=5)
    device.pull()
    device.now += timedelta(seconds=1)
    assert_refused(device, StatementExpired)
    digest = published.resolve("tiny:latest").digest
    assert device.pull(f"tiny@{digest}").digest == digest


def test_mix_and_match_the_statement_of_one_bundle_beside_the_manifest_of_another(device, published) -> None:
    genuine = published.resolve("tiny:latest")
    other = another_bundle(published)
    beside = published.resolve(f"tiny:{signature_tag(genuine.digest)}")
    published.update({"tiny:latest": other, f"tiny:{signature_tag(other.digest)}": beside})
    assert_refused(device, SignatureInvalid)
    assert_refused(device, SignatureInvalid, f"tiny@{other.digest}")


def test_mix_and_match_a_layer_of_another_bundle(device, server, published, trunk: Descriptor) -> None:
    other = published.add_bytes(b"x" * trunk.size, trunk.media_type)
    body = published.blob_path(other.digest).read_bytes()
    server.misbehave(
        lambda request: request.path.endswith(trunk.digest) and request.span is not None,
        lambda request, answer: replace(answer, body=body[request.span[0] : request.span[1] + 1]),
        times=999,
    )
    with pytest.raises(DigestMismatch):
        device.pull()
    assert device.is_empty()


def test_wrong_key_a_statement_that_a_stranger_signed(device, published) -> None:
    device.pull()
    sign_reference(published, "tiny:latest", OTHER_KEY, version=2)
    assert_refused(device, PublisherChanged)
    assert_refused(device, PublisherChanged, rules=lambda rules: replace(rules, required=PUBLISHER))


def test_endless_data_in_manifest_statement_and_counts(device, server, published) -> None:
    endless = Answer(200, {}, b" " * (5 * 1024 * 1024))
    beside = published.resolve(f"tiny:{signature_tag(published.resolve('tiny:latest').digest)}")
    artifact = json.loads(published.read_blob(beside.digest, max_bytes=1 << 20))
    (layer,) = artifact["layers"]
    long = artifact | {"layers": [layer | {"size": 2**50}]}
    many = artifact | {
        "layers": [layer | {"annotations": {"org.opencontainers.image.title": f"r{n}"}} for n in range(200)]
    }
    attacks = [
        ("/manifests/latest", endless),
        (".sig", endless),
        (".sig", Answer(200, {}, json.dumps(long).encode())),
        (".sig", Answer(200, {}, json.dumps(many).encode())),
        (layer["digest"], endless),
    ]
    for end, answer in attacks:
        server.misbehave(lambda request, end=end: request.path.endswith(end), instead(answer), times=9)
        assert_refused(device, LimitExceeded)
        server.faults.clear()


def test_equivocation_one_version_for_two_bundles(device, published) -> None:
    device.pull()
    publish(published, "tiny:latest", another_bundle(published), version=1)
    assert_refused(device, Equivocated)


def test_stripped_statement_a_mirror_serves_the_older_signature_instead(device, published) -> None:
    device.pull()
    sign_the_old_way(published, "tiny:latest")
    assert_refused(device, StatementMissing)
    pulled = device.pull(rules=lambda rules: replace(rules, allows_old_signature=True))
    assert (pulled.publisher, pulled.statement) == (PUBLISHER, None)


def test_stripped_statement_under_another_name_of_the_publisher(device, published) -> None:
    device.pull()
    publish(published, "other:latest", published.resolve("tiny:latest"))
    sign_the_old_way(published, "other:latest")
    assert_refused(device, StatementMissing, "other")


def test_stripped_statement_nothing_at_all_is_left(device, published) -> None:
    device.pull()
    published.update({name: None for name in published.references() if name.endswith(".sig")})
    assert_refused(device, SignatureMissing, rules=lambda rules: replace(rules, allows_unsigned=True))


def test_an_older_signature_is_accepted_where_no_statement_was_ever_seen(device, published) -> None:
    sign_the_old_way(published, "tiny:latest")
    pulled = device.pull(rules=lambda rules: replace(rules, required=PUBLISHER))
    assert (pulled.publisher, pulled.statement) == (PUBLISHER, None)


def rotated(published: ImageLayout, *rotations: SignedRotation, version: int = 2) -> None:
    sign_reference(published, "tiny:latest", NEW_KEY, version=version, rotations=rotations)


def test_a_rotation_by_the_pinned_key_moves_the_pin(device, published) -> None:
    device.pull()
    rotated(published, sign_rotation(KEY, NEW_KEY, at=AT))
    pulled = device.pull()
    assert (pulled.publisher, pulled.replaced_key) == (NEW, PUBLISHER)
    assert device.keys.pinned(SOURCE) == {NEW}
    assert device.pull().replaced_key is None


def test_a_required_key_that_was_replaced_keeps_working(device, published) -> None:
    rotated(published, sign_rotation(KEY, NEW_KEY, at=AT))
    for _ in range(2):
        assert device.pull(rules=lambda rules: replace(rules, required=PUBLISHER)).publisher == NEW


def test_a_rotation_by_a_stranger_does_not_move_the_pin(device, published) -> None:
    device.pull()
    rotated(published, sign_rotation(OTHER_KEY, NEW_KEY, at=AT))
    assert_refused(device, PublisherChanged)


def test_a_rotation_that_claims_the_pinned_key_but_was_signed_by_a_stranger_is_refused(device, published) -> None:
    device.pull()
    genuine = sign_rotation(KEY, NEW_KEY, at=AT)
    forged = genuine.envelope.replace(
        json.loads(genuine.envelope)["signatures"][0]["sig"].encode(),
        json.loads(sign_rotation(OTHER_KEY, NEW_KEY, at=AT).envelope)["signatures"][0]["sig"].encode(),
    )
    rotated(published)
    beside = published.resolve(f"tiny:{signature_tag(published.resolve('tiny:latest').digest)}")
    artifact = json.loads(published.read_blob(beside.digest, max_bytes=1 << 20))
    blob = published.add_bytes(forged, "application/vnd.dsse.envelope.v1+json")
    artifact["layers"].append(
        {
            "mediaType": blob.media_type,
            "digest": blob.digest,
            "size": blob.size,
            "annotations": {"org.opencontainers.image.title": "key-rotation-000.dsse.json"},
        }
    )
    changed = published.add_bytes(json.dumps(artifact).encode(), MANIFEST_MEDIA_TYPE)
    published.tag(f"tiny:{signature_tag(published.resolve('tiny:latest').digest)}", changed)
    assert_refused(device, SignatureInvalid)


def test_a_replayed_rotation_does_not_bring_a_replaced_key_back(device, published) -> None:
    """The old key was stolen after its owner had replaced it: neither it nor a second successor is believed."""
    device.pull()
    rotated(published, sign_rotation(KEY, NEW_KEY, at=AT))
    device.pull()
    sign_reference(published, "tiny:latest", KEY, version=9)
    assert_refused(device, PublisherChanged)
    assert_refused(device, PublisherChanged, rules=lambda rules: replace(rules, required=PUBLISHER))
    sign_reference(published, "tiny:latest", OTHER_KEY, version=9, rotations=(sign_rotation(KEY, OTHER_KEY, at=AT),))
    assert_refused(device, PublisherChanged)


def test_a_replaced_key_is_refused_under_other_names_too(device, published) -> None:
    publish(published, "other:latest", published.resolve("tiny:latest"))
    device.pull()
    device.pull("other")
    rotated(published, sign_rotation(KEY, NEW_KEY, at=AT))
    device.pull()
    assert_refused(device, PublisherChanged, "other")
