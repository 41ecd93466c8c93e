"""A publisher and a device, end to end: statements, a rotation by the operator's command, an older service's bundle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tiny_bundle import TinyBundle

from cloud_service import cli as cloud
from cloud_service.storage.releases import published_statement, sign_tag
from cloud_service.storage.signing_keys import open_signing_key
from device_client import cli as device
from shared.bundle.layout import ImageLayout
from shared.bundle.signature import publish_signature, sign, signature_tag

Call = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def publisher(tiny_bundle: TinyBundle, tmp_path: Path) -> ImageLayout:
    shutil.copytree(tiny_bundle.layout.root, tmp_path / "published")
    return ImageLayout(tmp_path / "published")


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    monkeypatch.setenv("ZO_DEVICE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ZO_DEVICE_TRUSTED_KEY", raising=False)

    def call(*words: str) -> tuple[int, dict[str, Any]]:
        code = device.main(["--json", *words])
        return code, json.loads(capsys.readouterr().out.splitlines()[-1])

    return call


def publish(layout: ImageLayout, key_path: Path) -> None:
    """What ``zo-cloud prepare`` does at its end."""
    manifest = layout.resolve("tiny:latest")
    previous = published_statement(layout, "tiny", "latest")
    artifact = sign_tag(
        layout, open_signing_key(key_path), "tiny", "latest", manifest,
        previous=previous.version if previous else None, now=datetime.now(UTC),
    )  # fmt: skip
    layout.update({"tiny:latest": manifest, f"tiny:{signature_tag(manifest.digest)}": artifact})


def test_a_device_follows_a_rotation_that_the_operator_made(publisher: ImageLayout, call: Call, tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    publish(publisher, key)
    old = open_signing_key(key).fingerprint
    assert call("import", str(publisher.root))[1]["publisher"] == old
    assert cloud.main(["signing-key", "rotate", "--signing-key", str(key), "--json"]) == 0
    publish(publisher, key)
    code, answer = call("import", str(publisher.root), "--trusted-key", old)
    assert (code, answer["publisher"], answer["replaced_key"]) == (0, open_signing_key(key).fingerprint, old)


def test_a_device_refuses_the_key_that_replaced_a_lost_one_until_it_is_told(
    publisher: ImageLayout, call: Call, tmp_path: Path
) -> None:
    key = tmp_path / "key.pem"
    publish(publisher, key)
    assert call("import", str(publisher.root))[0] == 0
    key.unlink()
    words = ["rotate", "--lost", "--yes-every-device-must-be-told", "--signing-key", str(key)]
    assert cloud.main(["signing-key", *words, "--json"]) == 0
    publish(publisher, key)
    assert call("import", str(publisher.root))[1]["error"]["type"] == "publisher-changed"
    new = open_signing_key(key).fingerprint
    assert call("import", str(publisher.root), "--trusted-key", new)[1]["publisher"] == new


def test_a_bundle_that_a_service_signed_the_older_way_is_followed_by_its_statements(
    publisher: ImageLayout, call: Call, tmp_path: Path
) -> None:
    key = tmp_path / "key.pem"
    manifest = publisher.resolve("tiny:latest")
    signature = sign(open_signing_key(key).private, manifest.digest)
    older = {f"tiny:{signature_tag(manifest.digest)}": publish_signature(publisher, manifest, signature)}
    publisher.update({**older})
    assert call("import", str(publisher.root))[1]["release"] is None
    publish(publisher, key)
    assert call("import", str(publisher.root))[1]["release"]["tag"] == "latest"
    publisher.update({**older})
    assert call("import", str(publisher.root))[1]["error"]["type"] == "statement-missing"
