"""list, inspect, verify, rm and prune on a store with one bundle."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest
from tiny_bundle import TinyBundle

from device_client.settings import Settings
from device_client.store import resolve_bundle
from shared.bundle.layout import ImageLayout
from shared.bundle.manifest import parse_manifest
from shared.errors import BlobTruncated, NotFound


def trunk_path(store: ImageLayout) -> Path:
    digest = store.resolve("tiny:latest").digest
    layer = parse_manifest(store.read_blob(digest, max_bytes=1 << 20)).layer("trunk.safetensors")
    assert layer is not None
    return store.blob_path(layer.digest)


def test_an_empty_store_lists_nothing_and_says_what_to_do(command) -> None:
    outcome = command("list")
    assert (outcome.code, outcome.result) == (0, {"bundles": []})
    assert "zo-device pull" in outcome.told


def test_list_shows_the_bundle_without_its_signature(command, store: ImageLayout, tiny_bundle: TinyBundle) -> None:
    listed = command("list").result["bundles"]
    assert [(entry["reference"], entry["digest"]) for entry in listed] == [("tiny:latest", tiny_bundle.digest)]
    assert listed[0]["base_model"] == "tests/tiny"


def test_list_shows_a_damaged_bundle_with_its_fault(command, store: ImageLayout, tiny_bundle: TinyBundle) -> None:
    store.blob_path(tiny_bundle.digest).write_bytes(b"{}")
    outcome = command("list")
    assert outcome.code == 0
    assert "other bytes" in outcome.result["bundles"][0]["fault"]


def test_inspect_says_what_the_bundle_is_made_of(command, store: ImageLayout) -> None:
    outcome = command("inspect")
    assert outcome.code == 0
    assert outcome.result["source"]["id"] == "tests/tiny"
    assert outcome.result["quantizer"] == {"method": "lut", "bits": 4, "group_size": None, "compensation": None}
    assert outcome.result["mask"]["sensitive_count"] == 14 * 8
    assert "tensors" not in outcome.result
    assert "trunk.safetensors" in outcome.told
    assert re.search(r"embedding and head\W+16 bits", outcome.told)


def test_inspect_shows_tensors_on_request(command, store: ImageLayout) -> None:
    tensors = command("inspect", "tiny", "--tensors").result["tensors"]
    assert len(tensors) == 14
    assert tensors[0]["shape"] == [32, 32]


def test_verify_accepts_an_intact_bundle_and_names_its_publisher(command, store: ImageLayout) -> None:
    outcome = command("verify", "tiny:latest")
    assert outcome.code == 0
    assert outcome.result["publisher"].startswith("ed25519:")


def test_verify_finds_one_changed_byte(command, store: ImageLayout) -> None:
    data = bytearray(trunk_path(store).read_bytes())
    data[5000] ^= 1
    trunk_path(store).write_bytes(bytes(data))
    outcome = command("verify")
    assert (outcome.code, outcome.result["error"]["type"]) == (5, "digest-mismatch")
    assert "zo-device pull" in outcome.result["error"]["next_step"]


def test_an_unknown_bundle_exits_4_and_names_the_known_ones(command, store: ImageLayout) -> None:
    for name in ("inspect", "verify", "rm"):
        outcome = command(name, "other:v1")
        assert (outcome.code, outcome.result["error"]["type"]) == (4, "not-found")
        assert "tiny:latest" in outcome.result["error"]["needed"]


def test_rm_makes_a_bundle_invisible_and_prune_frees_its_bytes(command, store: ImageLayout) -> None:
    assert command("rm", "tiny").code == 0
    assert store.references() == {}
    assert trunk_path_exists(store)
    would = command("prune", "--dry-run").result
    assert trunk_path_exists(store)
    did = command("prune").result
    assert would["freed_bytes"] == did["freed_bytes"] > 0
    assert list(store.blobs.iterdir()) == []


def trunk_path_exists(store: ImageLayout) -> bool:
    return any(store.blobs.iterdir())


def test_prune_keeps_everything_that_a_bundle_needs_and_deletes_partials(command, store: ImageLayout) -> None:
    partial = store.root / "partial" / "ab.part"
    partial.write_bytes(bytes(8192))
    (store.blobs / ("0" * 64)).write_bytes(b"orphan")
    assert command("prune").result["files"] == 2
    assert not partial.exists()
    assert command("verify").code == 0


def test_prune_deletes_nothing_when_a_manifest_cannot_be_read(command, store: ImageLayout, tiny_bundle) -> None:
    before = sorted(path.name for path in store.blobs.iterdir())
    store.blob_path(tiny_bundle.digest).write_bytes(b"{}")
    assert command("prune").code == 5
    assert sorted(path.name for path in store.blobs.iterdir()) == before


def leave_behind(store: ImageLayout, *, modified: float) -> list[Path]:
    """What a writer leaves when it is killed: a folder of tensors, an unfinished index, an unfinished blob."""
    folder, index, blob = store.root / ".writing-ab12", store.root / ".index.json.x1", store.blobs / f".{'0' * 64}.x2"
    folder.mkdir()
    for file in (folder / "trunk.safetensors", index, blob):
        file.write_bytes(bytes(8192))
    for path in (folder, index, blob):
        os.utime(path, (modified, modified))
    return [folder, index, blob]


def test_prune_deletes_what_a_killed_writer_left_behind(command, store: ImageLayout) -> None:
    left = leave_behind(store, modified=time.time() - 60)
    would = command("prune", "--dry-run").result
    assert all(path.exists() for path in left)
    did = command("prune").result
    assert (did["files"], did["freed_bytes"]) == (would["files"], would["freed_bytes"])
    assert did["freed_bytes"] >= 3 * 8192
    assert not any(path.exists() for path in left)
    assert command("verify").code == 0


def test_prune_leaves_what_is_younger_than_itself_and_what_is_not_the_stores(command, store: ImageLayout) -> None:
    folder, index, _ = leave_behind(store, modified=time.time() + 3600)
    (store.root / ".DS_Store").write_bytes(b"x")
    assert command("prune").code == 0
    assert folder.exists()
    assert index.exists()
    assert (store.root / ".DS_Store").exists()


def test_prune_deletes_nothing_when_a_manifest_is_none(command, store: ImageLayout) -> None:
    store.tag("odd:v1", store.add_bytes(b'{"schemaVersion": 2}', "application/json"))
    before = sorted(path.name for path in store.blobs.iterdir())
    outcome = command("prune")
    assert (outcome.code, outcome.result["error"]["type"]) == (5, "invalid-manifest")
    assert sorted(path.name for path in store.blobs.iterdir()) == before


def test_rm_keeps_a_signature_that_another_tag_needs(command, store: ImageLayout, tiny_bundle: TinyBundle) -> None:
    store.tag("tiny:kept", store.resolve("tiny:latest"))
    command("rm", "tiny:latest")
    assert command("verify", "tiny:kept").result["publisher"]
    command("rm", f"tiny@{tiny_bundle.digest}")
    assert store.references() == {}


def test_resolve_bundle_takes_the_only_bundle_and_validates_it(home: Path, store: ImageLayout, tiny_bundle) -> None:
    settings = Settings(home=home)
    for reference in (None, "tiny", "tiny:latest", f"tiny@{tiny_bundle.digest}"):
        assert resolve_bundle(settings, reference).digest == tiny_bundle.digest
    path = trunk_path(store)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BlobTruncated):
        resolve_bundle(settings, None)


def test_resolve_bundle_without_a_reference_needs_exactly_one(home: Path, store: ImageLayout) -> None:
    with pytest.raises(NotFound, match="zo-device pull"):
        resolve_bundle(Settings(home=home / "elsewhere"), None)
    store.tag("tiny:other", store.resolve("tiny:latest"))
    with pytest.raises(NotFound, match="2 bundles"):
        resolve_bundle(Settings(home=home), None)
