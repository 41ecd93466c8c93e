"""The rules of acceptance for manifests, configurations and signatures of the older kind."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from simulated_server import KEY, OTHER_KEY, sign_reference

from device_client.download.publisher_memory import PublisherMemory
from device_client.download.trusted_bundle import AcceptanceRules, AcceptedSignature
from shared.bundle.digest import digest_of_bytes
from shared.bundle.layout import ImageLayout
from shared.bundle.manifest import parse_manifest
from shared.bundle.signature import sign
from shared.bundle.signature_artifact import SignatureDocuments
from shared.errors import (
    BlobTruncated,
    DigestMismatch,
    InvalidBundleConfig,
    InvalidManifest,
    LimitExceeded,
    PublisherChanged,
    SignatureInvalid,
    SignatureMissing,
    StatementMissing,
    UpgradeNeeded,
)

SOURCE = "http://models.test/tiny"
RULES = AcceptanceRules(SOURCE, "tiny", "latest", datetime(2030, 1, 1, tzinfo=UTC))
DIGEST = "sha256:" + "ab" * 32
OTHER_DIGEST = "sha256:" + "cd" * 32
PUBLISHER = sign(KEY, DIGEST).fingerprint
STRANGER = sign(OTHER_KEY, DIGEST).fingerprint


def manifest_bytes(layout: ImageLayout) -> bytes:
    return layout.read_blob(layout.resolve("tiny:latest").digest, max_bytes=1 << 20)


def accept(rules: AcceptanceRules, data: bytes, digest: str = DIGEST) -> AcceptedSignature | None:
    """Judge a signature over the digest alone."""
    return rules.accept_signature(SignatureDocuments(old_signature=data), digest)


def test_any_publisher_is_accepted_at_first_contact() -> None:
    signature = accept(RULES, sign(KEY, DIGEST).to_bytes())
    assert signature is not None
    assert (signature.publisher, signature.statement) == (PUBLISHER, None)


def test_the_pinned_publisher_is_accepted_again() -> None:
    rules = replace(RULES, pinned=frozenset({PUBLISHER}))
    assert accept(rules, sign(KEY, DIGEST).to_bytes())


def test_another_publisher_than_the_pinned_one_is_refused_and_named() -> None:
    rules = replace(RULES, pinned=frozenset({PUBLISHER}))
    with pytest.raises(PublisherChanged, match=STRANGER) as caught:
        accept(rules, sign(OTHER_KEY, DIGEST).to_bytes())
    assert PUBLISHER in caught.value.needed
    assert f"--trusted-key {STRANGER}" in caught.value.next_step


def test_a_required_key_is_enforced_at_first_contact() -> None:
    rules = replace(RULES, required=PUBLISHER)
    with pytest.raises(PublisherChanged):
        accept(rules, sign(OTHER_KEY, DIGEST).to_bytes())


def test_a_required_key_replaces_the_pinned_one() -> None:
    rules = replace(RULES, pinned=frozenset({PUBLISHER}), required=STRANGER)
    assert accept(rules, sign(OTHER_KEY, DIGEST).to_bytes())
    with pytest.raises(PublisherChanged):
        accept(rules, sign(KEY, DIGEST).to_bytes())


def test_an_unsigned_bundle_is_refused_unless_allowed() -> None:
    with pytest.raises(SignatureMissing, match="--allow-unsigned"):
        RULES.accept_signature(None, DIGEST)
    assert replace(RULES, allows_unsigned=True).accept_signature(None, DIGEST) is None


@pytest.mark.parametrize("known", [{"pinned": frozenset({PUBLISHER})}, {"required": PUBLISHER}])
def test_stripping_the_signature_of_a_known_publisher_is_refused_even_if_unsigned_is_allowed(known: dict) -> None:
    with pytest.raises(SignatureMissing, match=PUBLISHER):
        replace(RULES, allows_unsigned=True, **known).accept_signature(None, DIGEST)


def test_a_bad_signature_is_refused_even_if_unsigned_is_allowed() -> None:
    forged = sign(KEY, DIGEST).model_copy(update={"signature": sign(OTHER_KEY, DIGEST).signature})
    with pytest.raises(SignatureInvalid):
        accept(replace(RULES, allows_unsigned=True), forged.to_bytes())


def test_a_signature_over_another_manifest_is_refused() -> None:
    with pytest.raises(SignatureInvalid, match="over"):
        accept(RULES, sign(KEY, OTHER_DIGEST).to_bytes())


def test_a_signature_relabelled_for_this_manifest_is_refused() -> None:
    relabelled = sign(KEY, OTHER_DIGEST).model_copy(update={"manifest": DIGEST})
    with pytest.raises(SignatureInvalid, match="does not match"):
        accept(RULES, relabelled.to_bytes())


def test_claiming_the_pinned_key_without_holding_it_is_refused() -> None:
    claimed = sign(OTHER_KEY, DIGEST).model_copy(update={"public_key": sign(KEY, DIGEST).public_key})
    with pytest.raises(SignatureInvalid):
        accept(replace(RULES, pinned=frozenset({PUBLISHER})), claimed.to_bytes())


@pytest.mark.parametrize("data", [b"", b"null", b"[]", b"\xff\xfe", b'{"algorithm":"none"}', b"{" * 100])
def test_arbitrary_bytes_are_no_signature(data: bytes) -> None:
    with pytest.raises(SignatureInvalid):
        accept(RULES, data)


@pytest.mark.attack
def test_an_endless_signature_is_cut_off() -> None:
    with pytest.raises(LimitExceeded):
        accept(RULES, b" " * 4097)


def test_a_signature_over_the_digest_alone_is_refused_where_a_statement_was_ever_seen() -> None:
    by_this_key = PublisherMemory(statement_keys=[PUBLISHER])
    from_this_source = PublisherMemory(releases={SOURCE: {}})
    for memory in (by_this_key, from_this_source):
        with pytest.raises(StatementMissing, match="--allow-old-signature"):
            accept(replace(RULES, memory=memory), sign(KEY, DIGEST).to_bytes())
        assert accept(replace(RULES, memory=memory, allows_old_signature=True), sign(KEY, DIGEST).to_bytes())
    of_others = PublisherMemory(statement_keys=[STRANGER], releases={"http://models.test/other": {}})
    assert accept(replace(RULES, memory=of_others, required=PUBLISHER), sign(KEY, DIGEST).to_bytes())


def test_stripping_everything_is_refused_where_a_statement_was_ever_seen_even_if_unsigned_is_allowed() -> None:
    with pytest.raises(SignatureMissing):
        replace(RULES, allows_unsigned=True, memory=PublisherMemory(releases={SOURCE: {}})).accept_signature(
            None, DIGEST
        )


def test_a_signature_artifact_is_no_bundle(published: ImageLayout) -> None:
    reference = next(name for name in published.references() if name.endswith(".sig"))
    data = published.read_blob(published.resolve(reference).digest, max_bytes=1 << 20)
    with pytest.raises(InvalidManifest, match="artifactType"):
        RULES.accept_manifest(data)


@pytest.mark.parametrize("data", [b"", b"[]", b"\x00" * 100, b'{"schemaVersion":2}', b'{"a":1,"a":2}'])
def test_arbitrary_bytes_are_no_manifest(data: bytes) -> None:
    with pytest.raises(InvalidManifest):
        RULES.accept_manifest(data)


def test_an_endless_manifest_is_cut_off() -> None:
    with pytest.raises(LimitExceeded):
        RULES.accept_manifest(b" " * (4 * 1024 * 1024 + 1))


def test_a_manifest_other_than_the_one_asked_for_is_refused(published: ImageLayout) -> None:
    with pytest.raises(DigestMismatch, match="answered with"):
        replace(RULES, digest=DIGEST).accept_manifest(manifest_bytes(published))


def test_an_endless_configuration_is_refused_before_it_is_fetched(published: ImageLayout) -> None:
    manifest = json.loads(manifest_bytes(published))
    manifest["config"]["size"] = 64 * 1024 * 1024 + 1
    with pytest.raises(LimitExceeded, match="configuration"):
        RULES.accept_manifest(json.dumps(manifest).encode())


def test_a_newer_format_asks_for_an_upgrade(published: ImageLayout) -> None:
    newer = manifest_bytes(published).replace(b"bundle.v1+json", b"bundle.v2+json")
    with pytest.raises(UpgradeNeeded, match="upgrade zo-device"):
        RULES.accept_manifest(newer)


def test_a_bundle_that_needs_a_newer_client_asks_for_an_upgrade(published: ImageLayout) -> None:
    manifest = parse_manifest(manifest_bytes(published))
    config = published.read_blob(manifest.config.digest, max_bytes=1 << 20)
    with pytest.raises(UpgradeNeeded, match=r"0\.1\.0"):
        replace(RULES, client_version=(0, 0, 9)).accept_config(config, manifest)
    assert replace(RULES, client_version=(0, 1, 0)).accept_config(config, manifest)


def test_the_configuration_of_another_bundle_is_refused(published: ImageLayout) -> None:
    """Mix and match: every part is genuine, but they do not belong together."""
    manifest = parse_manifest(manifest_bytes(published))
    config = published.read_blob(manifest.config.digest, max_bytes=1 << 20)
    other = config.replace(b'"producer":"tests"', b'"producer":"other"')
    assert len(other) == len(config)
    with pytest.raises(DigestMismatch):
        RULES.accept_config(other, manifest)
    with pytest.raises(BlobTruncated):
        RULES.accept_config(config[:-1], manifest)


@pytest.mark.parametrize("fault", ["missing", "too few", "too many"])
def test_a_chunk_table_that_does_not_fit_a_layer_is_refused(published: ImageLayout, fault: str) -> None:
    manifest = parse_manifest(manifest_bytes(published))
    config = json.loads(published.read_blob(manifest.config.digest, max_bytes=1 << 20))
    trunk = manifest.layer("trunk.safetensors")
    assert trunk is not None
    pieces = config["chunks"].pop(trunk.digest)
    if fault != "missing":
        config["chunks"][trunk.digest] = pieces[:-1] if fault == "too few" else [*pieces, pieces[0]]
    data = json.dumps(config).encode()
    descriptor = manifest.config.model_copy(update={"digest": digest_of_bytes(data), "size": len(data)})
    with pytest.raises(InvalidBundleConfig, match="chunk digests for trunk"):
        RULES.accept_config(data, manifest.model_copy(update={"config": descriptor}))


def test_of_two_first_contacts_the_second_meets_the_pin_of_the_first(device, server) -> None:
    """The rules of both were made before either had pinned a key."""
    unpinned = RULES

    def meanwhile_pinned(_: AcceptanceRules) -> AcceptanceRules:
        device.keys.pin(SOURCE, STRANGER)
        return unpinned

    with pytest.raises(PublisherChanged):
        device.pull(rules=meanwhile_pinned)
    assert server.layer_bytes_sent() == 0
    assert device.layout.references() == {}
    assert device.keys.pinned(SOURCE) == {STRANGER}


def test_a_pulled_bundle_by_another_key_is_refused_and_the_old_one_stays(device, published: ImageLayout) -> None:
    device.pull()
    reference = next(name for name in published.references() if name.endswith(".sig"))
    published.update({reference: None})
    sign_reference(published, "tiny:latest", OTHER_KEY)
    before = device.layout.references()
    with pytest.raises(PublisherChanged):
        device.pull()
    assert device.layout.references() == before
    pulled = device.pull(rules=lambda rules: replace(rules, required=STRANGER))
    assert pulled.publisher == STRANGER
    assert device.keys.pinned(SOURCE) == {STRANGER}


def test_an_unsigned_bundle_on_the_server_is_refused_before_a_layer_is_fetched(device, server, published) -> None:
    published.update({name: None for name in published.references() if name.endswith(".sig")})
    with pytest.raises(SignatureMissing):
        device.pull()
    assert server.layer_bytes_sent() == 0
    assert device.is_empty()


def test_a_swapped_manifest_needs_its_own_signature(device, server, published) -> None:
    """A tag moved to another manifest without the publisher's key: no signature exists under its digest."""
    swapped = manifest_bytes(published).replace(b'"layers"', b'"annotations":{"x":"y"},"layers"')
    published.tag("tiny:latest", published.add_bytes(swapped, "application/vnd.oci.image.manifest.v1+json"))
    with pytest.raises(SignatureMissing):
        device.pull()
    assert server.layer_bytes_sent() == 0
