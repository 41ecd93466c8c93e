"""The rules of acceptance against the attacks of The Update Framework's list that a signed digest can stop."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from simulated_server import KEY, OTHER_KEY, sign_reference

from device_client.download.trusted_bundle import AcceptanceRules, signature_blob
from device_client.download.trusted_keys import TrustedKeys, check_fingerprint
from shared.bundle.digest import digest_of_bytes
from shared.bundle.layout import ImageLayout
from shared.bundle.manifest import parse_manifest
from shared.bundle.signature import sign
from shared.errors import (
    BlobTruncated,
    DigestMismatch,
    InvalidBundleConfig,
    InvalidManifest,
    InvalidRequest,
    LimitExceeded,
    PublisherChanged,
    SignatureInvalid,
    SignatureMissing,
    UpgradeNeeded,
    ZoError,
)

SOURCE = "http://models.test/tiny"
RULES = AcceptanceRules(SOURCE)
DIGEST = "sha256:" + "ab" * 32
OTHER_DIGEST = "sha256:" + "cd" * 32
PUBLISHER = sign(KEY, DIGEST).fingerprint
STRANGER = sign(OTHER_KEY, DIGEST).fingerprint


def manifest_bytes(layout: ImageLayout) -> bytes:
    return layout.read_blob(layout.resolve("tiny:latest").digest, max_bytes=1 << 20)


def test_any_publisher_is_accepted_at_first_contact() -> None:
    signature = RULES.accept_signature(sign(KEY, DIGEST).to_bytes(), DIGEST)
    assert signature is not None
    assert signature.fingerprint == PUBLISHER


def test_the_pinned_publisher_is_accepted_again() -> None:
    rules = replace(RULES, pinned=frozenset({PUBLISHER}))
    assert rules.accept_signature(sign(KEY, DIGEST).to_bytes(), DIGEST)


def test_another_publisher_than_the_pinned_one_is_refused_and_named() -> None:
    rules = replace(RULES, pinned=frozenset({PUBLISHER}))
    with pytest.raises(PublisherChanged, match=STRANGER) as caught:
        rules.accept_signature(sign(OTHER_KEY, DIGEST).to_bytes(), DIGEST)
    assert PUBLISHER in caught.value.needed
    assert f"--trusted-key {STRANGER}" in caught.value.next_step


def test_a_required_key_is_enforced_at_first_contact() -> None:
    rules = replace(RULES, required=PUBLISHER)
    with pytest.raises(PublisherChanged):
        rules.accept_signature(sign(OTHER_KEY, DIGEST).to_bytes(), DIGEST)


def test_a_required_key_replaces_the_pinned_one() -> None:
    rules = replace(RULES, pinned=frozenset({PUBLISHER}), required=STRANGER)
    assert rules.accept_signature(sign(OTHER_KEY, DIGEST).to_bytes(), DIGEST)
    with pytest.raises(PublisherChanged):
        rules.accept_signature(sign(KEY, DIGEST).to_bytes(), DIGEST)


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
        replace(RULES, allows_unsigned=True).accept_signature(forged.to_bytes(), DIGEST)


def test_a_signature_over_another_manifest_is_refused() -> None:
    with pytest.raises(SignatureInvalid, match="over"):
        RULES.accept_signature(sign(KEY, OTHER_DIGEST).to_bytes(), DIGEST)


def test_a_signature_relabelled_for_this_manifest_is_refused() -> None:
    relabelled = sign(KEY, OTHER_DIGEST).model_copy(update={"manifest": DIGEST})
    with pytest.raises(SignatureInvalid, match="does not match"):
        RULES.accept_signature(relabelled.to_bytes(), DIGEST)


def test_claiming_the_pinned_key_without_holding_it_is_refused() -> None:
    claimed = sign(OTHER_KEY, DIGEST).model_copy(update={"public_key": sign(KEY, DIGEST).public_key})
    with pytest.raises(SignatureInvalid):
        replace(RULES, pinned=frozenset({PUBLISHER})).accept_signature(claimed.to_bytes(), DIGEST)


@pytest.mark.parametrize("data", [b"", b"null", b"[]", b"\xff\xfe", b'{"algorithm":"none"}', b"{" * 100])
def test_arbitrary_bytes_are_no_signature(data: bytes) -> None:
    with pytest.raises(SignatureInvalid):
        RULES.accept_signature(data, DIGEST)


def test_endless_signatures_are_cut_off() -> None:
    with pytest.raises(LimitExceeded):
        RULES.accept_signature(b" " * 4097, DIGEST)
    with pytest.raises(LimitExceeded):
        signature_blob(b" " * 65537)


def test_a_bundle_is_no_signature_artifact(published: ImageLayout) -> None:
    with pytest.raises(SignatureInvalid, match="artifact of type"):
        signature_blob(manifest_bytes(published))


@pytest.mark.parametrize("data", [b"", b"[]", b"[" * 60_000, b'{"schemaVersion":2}', b'{"a":1,"a":2}'])
def test_arbitrary_bytes_are_no_signature_artifact(data: bytes) -> None:
    with pytest.raises(SignatureInvalid):
        signature_blob(data)


def test_a_key_twice_is_refused_in_a_signature_artifact_too(published: ImageLayout) -> None:
    reference = next(name for name in published.references() if name.endswith(".sig"))
    data = published.read_blob(published.resolve(reference).digest, max_bytes=1 << 20)
    with pytest.raises(SignatureInvalid, match="a key occurs twice"):
        signature_blob(data.replace(b'"schemaVersion":2', b'"schemaVersion":2,"schemaVersion":2'))


def test_a_signature_artifact_is_no_bundle(published: ImageLayout) -> None:
    reference = next(name for name in published.references() if name.endswith(".sig"))
    data = published.read_blob(published.resolve(reference).digest, max_bytes=1 << 20)
    assert signature_blob(data).size < 4096
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


def test_a_pin_is_kept_per_source_in_a_private_file(tmp_path: Path) -> None:
    keys = TrustedKeys(tmp_path / "home" / "trusted_keys.json")
    keys.pin(SOURCE, PUBLISHER)
    keys.pin("http://other.test/tiny", STRANGER)
    assert keys.pinned(SOURCE) == {PUBLISHER}
    assert keys.pinned("http://models.test/other") == frozenset()
    assert keys.pinned_for_import("tiny") == {PUBLISHER, STRANGER}
    assert (tmp_path / "home" / "trusted_keys.json").stat().st_mode & 0o777 == 0o600


def test_a_pin_of_imports_outweighs_those_of_servers(tmp_path: Path) -> None:
    keys = TrustedKeys(tmp_path / "trusted_keys.json")
    keys.pin("http://other.test/tiny", STRANGER)
    keys.pin("import/tiny", PUBLISHER)
    assert keys.pinned_for_import("tiny") == {PUBLISHER}


def test_a_pin_is_replaced_on_demand_only(tmp_path: Path) -> None:
    keys = TrustedKeys(tmp_path / "trusted_keys.json")
    keys.pin(SOURCE, PUBLISHER)
    with pytest.raises(PublisherChanged, match=STRANGER):
        keys.pin(SOURCE, STRANGER)
    assert keys.pinned(SOURCE) == {PUBLISHER}
    keys.pin(SOURCE, STRANGER, is_demanded=True)
    assert keys.pinned(SOURCE) == {STRANGER}


def test_the_name_of_a_bundle_is_matched_whole(tmp_path: Path) -> None:
    keys = TrustedKeys(tmp_path / "trusted_keys.json")
    keys.pin("http://models.test/people/tiny", PUBLISHER)
    assert keys.pinned_for_import("people/tiny") == {PUBLISHER}
    assert keys.pinned_for_import("tiny") == frozenset()
    assert keys.pinned_for_import("iny") == frozenset()


def test_of_two_first_contacts_the_second_meets_the_pin_of_the_first(device, server) -> None:
    """The rules of both were made before either had pinned a key."""
    unpinned = AcceptanceRules(SOURCE)

    def meanwhile_pinned(_: AcceptanceRules) -> AcceptanceRules:
        device.keys.pin(SOURCE, STRANGER)
        return unpinned

    with pytest.raises(PublisherChanged):
        device.pull(rules=meanwhile_pinned)
    assert server.layer_bytes_sent() == 0
    assert device.layout.references() == {}
    assert device.keys.pinned(SOURCE) == {STRANGER}


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 1}'])
def test_a_damaged_file_of_pins_is_an_error_not_an_empty_set(tmp_path: Path, content: str) -> None:
    (tmp_path / "trusted_keys.json").write_text(content)
    with pytest.raises(ZoError, match="damaged"):
        TrustedKeys(tmp_path / "trusted_keys.json").pinned(SOURCE)


@pytest.mark.parametrize("text", ["", "ed25519:", "ed25519:" + "AB" * 32, "rsa:" + "ab" * 32, "ab" * 32])
def test_a_malformed_trusted_key_is_a_wrong_call(text: str) -> None:
    with pytest.raises(InvalidRequest, match="64 lower-case hex"):
        check_fingerprint(text)


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
