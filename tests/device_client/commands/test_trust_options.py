"""What people say about trust and are told of it: pull over HTTP, import, export and verify."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from simulated_server import (
    KEY,
    OTHER_KEY,
    SimulatedServer,
    fingerprint,
    serving,
    sign_reference,
    sign_the_old_way,
)

from shared.bundle.layout import ImageLayout
from shared.bundle.signature import signature_tag
from shared.bundle.signature_artifact import documents_beside, verified_statements
from shared.bundle.statement import sign_rotation

PAST = datetime(2020, 1, 1, tzinfo=UTC)
PUBLISHER, NEW = fingerprint(KEY), fingerprint(OTHER_KEY)
ROTATION = sign_rotation(KEY, OTHER_KEY, at=PAST)


@pytest.fixture
def address(exported: ImageLayout) -> Iterator[str]:
    """A server with the bundle of the stick."""
    with serving(SimulatedServer(exported)) as address:
        yield address


def tags_beside(layout: ImageLayout, reference: str) -> list[str]:
    documents = documents_beside(layout, reference.rpartition(":")[0], layout.resolve(reference).digest)
    return sorted(release.statement.tag for release in verified_statements(documents).releases)


def test_pull_and_verify_tell_what_the_publisher_stated(command, home: Path, address: str) -> None:
    release = {"name": "tiny", "tag": "latest", "version": 1, "expires": "2999-01-01T00:00:00Z"}
    assert command("pull", f"{address}/tiny").result["release"] == release
    outcome = command("verify", "tiny")
    assert (outcome.code, outcome.result["release"], outcome.result["publisher"]) == (0, release, PUBLISHER)
    assert "Published as tiny:latest, valid until 2999-01-01T00:00:00Z" in outcome.told


def test_an_expired_bundle_is_refused_from_a_server_and_taken_from_a_folder_on_demand(
    command, home: Path, exported: ImageLayout, address: str
) -> None:
    sign_reference(exported, "tiny:latest", expires=PAST)
    for words in (["pull", f"{address}/tiny"], ["import", str(exported.root)]):
        outcome = command(*words)
        assert (outcome.code, outcome.result["error"]["type"]) == (5, "statement-expired")
        assert "2020-01-01T00:00:00Z" in outcome.told
        assert "clock" in outcome.told
    assert command("import", str(exported.root), "--allow-expired").code == 0
    outcome = command("verify", "tiny")
    assert outcome.code == 0
    assert "no longer vouches" in outcome.told


def test_an_expired_bundle_is_taken_from_a_folder_by_its_digest(command, home: Path, exported: ImageLayout) -> None:
    sign_reference(exported, "tiny:latest", expires=PAST)
    digest = exported.resolve("tiny:latest").digest
    assert command("import", str(exported.root), f"tiny@{digest}").code == 0


def test_an_older_signature_is_taken_with_a_warning_that_says_what_is_not_proven(
    command, home: Path, exported: ImageLayout, address: str
) -> None:
    sign_the_old_way(exported, "tiny:latest")
    outcome = command("pull", f"{address}/tiny")
    assert (outcome.code, outcome.result["publisher"], outcome.result["release"]) == (0, PUBLISHER, None)
    assert "not under which name" in outcome.told
    assert "nothing newer" in outcome.told
    verified = command("verify", "tiny")
    assert (verified.code, verified.result["publisher"], verified.result["release"]) == (0, PUBLISHER, None)
    assert "neither its name nor its age" in verified.told


def test_after_a_statement_an_older_signature_needs_an_option(command, store, exported: ImageLayout, address) -> None:
    sign_the_old_way(exported, "tiny:latest")
    for words in (["import", str(exported.root)], ["pull", f"{address}/tiny"]):
        outcome = command(*words)
        assert (outcome.code, outcome.result["error"]["type"]) == (5, "statement-missing")
        assert command(*words, "--allow-old-signature").code == 0


def test_a_mirror_may_keep_a_bundle_under_a_name_of_its_own_if_the_user_says_so(
    command, home: Path, exported: ImageLayout, address: str
) -> None:
    manifest = exported.resolve("tiny:latest")
    beside = exported.resolve(f"tiny:{signature_tag(manifest.digest)}")
    exported.update({"mirror/small:v1": manifest, f"mirror/small:{signature_tag(manifest.digest)}": beside})
    assert command("pull", f"{address}/mirror/small:v1").result["error"]["type"] == "other-name"
    outcome = command("pull", f"{address}/mirror/small:v1", "--published-as", "tiny:latest")
    assert (outcome.code, outcome.result["reference"]) == (0, "mirror/small:v1")
    assert outcome.result["release"]["name"] == "tiny"
    assert command("verify", "mirror/small:v1").code == 0


def test_a_replaced_key_is_told_and_the_variable_that_names_it_keeps_working(
    command, home: Path, exported: ImageLayout, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command("pull", f"{address}/tiny").code == 0
    sign_reference(exported, "tiny:latest", OTHER_KEY, version=2, rotations=(ROTATION,))
    monkeypatch.setenv("ZO_DEVICE_TRUSTED_KEY", PUBLISHER)
    outcome = command("pull", f"{address}/tiny")
    assert (outcome.code, outcome.result["publisher"], outcome.result["replaced_key"]) == (0, NEW, PUBLISHER)
    assert f"set it to {NEW}" in outcome.told
    remembered = json.loads((home / "trusted_keys.json").read_text())
    assert remembered["pins"] == {f"{address}/tiny": NEW}
    assert remembered["successors"] == {PUBLISHER: NEW}
    monkeypatch.setenv("ZO_DEVICE_TRUSTED_KEY", NEW)
    assert "ZO_DEVICE_TRUSTED_KEY" not in command("pull", f"{address}/tiny").told


def test_statements_of_two_tags_and_rotations_go_on_with_the_bundle(
    command, home: Path, exported: ImageLayout, tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported.tag("tiny:v1", exported.resolve("tiny:latest"))
    sign_reference(exported, "tiny:latest", OTHER_KEY, version=2, rotations=(ROTATION,))
    sign_reference(exported, "tiny:v1", OTHER_KEY)
    for tag in ("latest", "v1"):
        assert command("pull", f"{address}/tiny:{tag}").code == 0
    assert tags_beside(ImageLayout(home / "bundles"), "tiny:latest") == ["latest", "v1"]
    stick = ImageLayout(tmp_path / "out")
    assert command("export", "tiny:v1", str(stick.root)).code == 0
    assert tags_beside(stick, "tiny:v1") == ["latest", "v1"]

    second = tmp_path / "second"
    monkeypatch.setenv("ZO_DEVICE_HOME", str(second))
    second.mkdir()
    (second / "trusted_keys.json").write_text(json.dumps({"https://models.test/tiny": PUBLISHER}))
    outcome = command("import", str(stick.root))
    assert (outcome.code, outcome.result["publisher"], outcome.result["replaced_key"]) == (0, NEW, PUBLISHER)


def test_a_statement_that_is_missing_in_the_folder_is_an_incomplete_copy(command, home, exported: ImageLayout) -> None:
    manifest = exported.resolve("tiny:latest")
    beside = exported.resolve(f"tiny:{signature_tag(manifest.digest)}")
    (layer,) = json.loads(exported.blob_path(beside.digest).read_bytes())["layers"]
    exported.blob_path(layer["digest"]).unlink()
    outcome = command("import", str(exported.root), "--allow-unsigned")
    assert (outcome.code, outcome.result["error"]["type"]) == (5, "blob-missing")


def test_pruning_keeps_the_statements_of_what_is_kept(command, store: ImageLayout) -> None:
    assert command("prune").result["files"] == 0
    assert command("verify", "tiny").result["release"]["tag"] == "latest"
    assert command("rm", "tiny").code == 0
    assert command("prune").result["freed_bytes"] > 0
    assert list(store.blobs.iterdir()) == []
