"""What this device remembers of publishers, and the file that keeps it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from simulated_server import KEY, OTHER_KEY, fingerprint

from device_client.download.publisher_memory import PublisherMemory
from device_client.download.trusted_keys import TrustedKeys, check_fingerprint
from shared.bundle.statement import sign_release
from shared.errors import InvalidRequest, PublisherChanged, ZoError

SOURCE = "http://models.test/tiny"
PUBLISHER, STRANGER = fingerprint(KEY), fingerprint(OTHER_KEY)
DIGEST = "sha256:" + "ab" * 32
STATEMENT = sign_release(
    KEY, name="tiny", tag="latest", version=7, digest=DIGEST, expires=datetime(2030, 1, 1, tzinfo=UTC)
).statement


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
    keys.pin(SOURCE, STRANGER, may_replace=True)
    assert keys.pinned(SOURCE) == {STRANGER}


def test_the_name_of_a_bundle_is_matched_whole(tmp_path: Path) -> None:
    keys = TrustedKeys(tmp_path / "trusted_keys.json")
    keys.pin("http://models.test/people/tiny", PUBLISHER)
    assert keys.pinned_for_import("people/tiny") == {PUBLISHER}
    assert keys.pinned_for_import("tiny") == frozenset()
    assert keys.pinned_for_import("iny") == frozenset()


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 1}'])
def test_a_damaged_file_of_pins_is_an_error_not_an_empty_set(tmp_path: Path, content: str) -> None:
    (tmp_path / "trusted_keys.json").write_text(content)
    with pytest.raises(ZoError, match="damaged"):
        TrustedKeys(tmp_path / "trusted_keys.json").pinned(SOURCE)


@pytest.mark.parametrize("text", ["", "ed25519:", "ed25519:" + "AB" * 32, "rsa:" + "ab" * 32, "ab" * 32])
def test_a_malformed_trusted_key_is_a_wrong_call(text: str) -> None:
    with pytest.raises(InvalidRequest, match="64 lower-case hex"):
        check_fingerprint(text)


def test_a_file_from_before_there_were_statements_keeps_its_pins(tmp_path: Path) -> None:
    path = tmp_path / "trusted_keys.json"
    path.write_text(json.dumps({SOURCE: PUBLISHER, "import/tiny": STRANGER}))
    keys = TrustedKeys(path)
    assert keys.pinned(SOURCE) == {PUBLISHER}
    keys.remember(keys.memory().with_release(SOURCE, "latest", STATEMENT, []))
    assert json.loads(path.read_text()) == {
        "format": 2,
        "pins": {SOURCE: PUBLISHER, "import/tiny": STRANGER},
        "releases": {SOURCE: {"latest": {"version": 7, "digest": DIGEST, "publisher": PUBLISHER}}},
        "statement_keys": [PUBLISHER],
        "successors": {},
    }


def test_a_file_of_a_newer_format_is_refused_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "trusted_keys.json"
    path.write_text('{"format": 3, "pins": {}}')
    with pytest.raises(ZoError, match="damaged"):
        TrustedKeys(path).pin(SOURCE, PUBLISHER)
    assert path.read_text() == '{"format": 3, "pins": {}}'


def test_what_is_remembered_already_is_not_written_again(tmp_path: Path) -> None:
    keys = TrustedKeys(tmp_path / "trusted_keys.json")
    keys.pin(SOURCE, PUBLISHER)
    before = (tmp_path / "trusted_keys.json").stat()
    keys.pin(SOURCE, PUBLISHER)
    after = (tmp_path / "trusted_keys.json").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_versions_are_remembered_for_each_source_tag_and_key() -> None:
    memory = PublisherMemory().with_release(SOURCE, "latest", STATEMENT, [])
    seen = memory.seen(SOURCE, "latest", PUBLISHER)
    assert seen is not None
    assert (seen.version, seen.digest) == (7, DIGEST)
    assert memory.seen(SOURCE, "v1", PUBLISHER) is None
    assert memory.seen("http://models.test/other", "latest", PUBLISHER) is None
    assert memory.seen(SOURCE, "latest", STRANGER) is None


def test_a_bundle_pulled_by_its_digest_says_nothing_about_a_tag_but_that_its_publisher_signs_statements() -> None:
    memory = PublisherMemory().with_release(SOURCE, None, STATEMENT, [])
    assert memory.seen(SOURCE, "latest", PUBLISHER) is None
    assert memory.knows_statements(SOURCE)
    assert memory.knows_statements("http://models.test/other", PUBLISHER)
    assert not memory.knows_statements("http://models.test/other", STRANGER)


def test_keys_that_claim_to_replace_each_other_in_a_circle_do_not_hang() -> None:
    memory = PublisherMemory(successors={PUBLISHER: STRANGER, STRANGER: PUBLISHER})
    assert memory.newest_key(PUBLISHER) == STRANGER
