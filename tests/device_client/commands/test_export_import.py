"""A bundle by USB stick: exported, imported under the same rules as from a server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from simulated_server import OTHER_KEY, sign_reference

from shared.bundle.layout import ImageLayout
from shared.bundle.manifest import parse_manifest
from shared.bundle.signature import sign


def layer_path(layout: ImageLayout) -> Path:
    manifest = parse_manifest(layout.read_blob(layout.resolve("tiny:latest").digest, max_bytes=1 << 20))
    return layout.blob_path(manifest.layers[0].digest)


def test_what_was_exported_can_be_imported_elsewhere(
    command, store: ImageLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command("export", "tiny", str(tmp_path / "out")).code == 0
    monkeypatch.setenv("ZO_DEVICE_HOME", str(tmp_path / "second"))
    outcome = command("import", str(tmp_path / "out"))
    assert (outcome.code, outcome.result["is_first_contact"]) == (0, True)
    assert command("verify", "tiny").result["publisher"] == outcome.result["publisher"]
    remembered = json.loads((tmp_path / "second" / "trusted_keys.json").read_text())
    assert remembered["pins"] == {"import/tiny": outcome.result["publisher"]}


def test_importing_and_exporting_again_changes_nothing(command, store, exported, tmp_path: Path) -> None:
    assert command("import", str(exported.root)).result["was_complete"] is True
    for _ in range(2):
        assert command("export", "tiny", str(tmp_path / "out")).code == 0


def test_a_damaged_export_is_refused_and_nothing_is_visible(command, home: Path, exported: ImageLayout) -> None:
    data = bytearray(layer_path(exported).read_bytes())
    data[-1] ^= 1
    layer_path(exported).write_bytes(bytes(data))
    outcome = command("import", str(exported.root))
    assert (outcome.code, outcome.result["error"]["type"]) == (5, "digest-mismatch")
    assert ImageLayout(home / "bundles").references() == {}
    assert not any(path.name.startswith(".copying") for path in (home / "bundles" / "partial").iterdir())


@pytest.mark.parametrize(("fault", "error"), [("cut", "blob-truncated"), ("gone", "blob-missing")])
def test_an_incomplete_export_is_refused(command, exported: ImageLayout, fault: str, error: str) -> None:
    path = layer_path(exported)
    path.write_bytes(path.read_bytes()[:-1]) if fault == "cut" else path.unlink()
    outcome = command("import", str(exported.root))
    assert (outcome.code, outcome.result["error"]["type"]) == (5, error)


def test_an_import_signed_by_another_key_than_the_pinned_one_is_refused(command, store, exported, home: Path) -> None:
    before = store.references()
    sign_reference(exported, "tiny:latest", OTHER_KEY)
    outcome = command("import", str(exported.root))
    assert (outcome.code, outcome.result["error"]["type"]) == (5, "publisher-changed")
    assert store.references() == before


def test_a_key_pinned_for_a_server_holds_for_the_stick_too(command, home: Path, exported: ImageLayout) -> None:
    stranger = sign(OTHER_KEY, "sha256:" + "0" * 64).fingerprint
    home.mkdir()
    (home / "trusted_keys.json").write_text(json.dumps({"https://models.test/tiny": stranger}))
    assert command("import", str(exported.root)).result["error"]["type"] == "publisher-changed"


def test_an_unsigned_export_needs_allow_unsigned(command, home: Path, exported: ImageLayout) -> None:
    exported.update({name: None for name in exported.references() if name.endswith(".sig")})
    assert command("import", str(exported.root)).result["error"]["type"] == "signature-missing"
    outcome = command("import", str(exported.root), "--allow-unsigned")
    assert (outcome.code, outcome.result["publisher"]) == (0, None)
    assert "not signed" in outcome.told
    assert not (home / "trusted_keys.json").exists()


def test_a_folder_without_a_bundle_exits_4(command, tmp_path: Path) -> None:
    assert command("import", str(tmp_path)).code == 4
    assert command("import", str(tmp_path / "absent")).code == 4


def test_export_does_not_mix_with_other_files(command, store, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    outcome = command("export", "tiny", str(tmp_path / "photos"))
    assert (outcome.code, outcome.result["error"]["type"]) == (2, "invalid-request")
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.jpg"]


def test_a_damaged_bundle_is_not_exported(command, store, tmp_path: Path) -> None:
    layer_path(store).write_bytes(b"")
    assert command("export", "tiny", str(tmp_path / "out")).code == 5
    assert not (tmp_path / "out").exists()
