"""``zo-cloud signing-key``, and what a service says and refuses about its key."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cloud_service.app import open_service
from cloud_service.cli import main
from cloud_service.settings import Settings
from cloud_service.storage.signing_keys import open_signing_key
from shared.file_lock import exclusive


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """The key of a service's folder."""
    path = Settings(data=tmp_path / "data").signing_key
    open_signing_key(path)
    return path


@pytest.fixture
def call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*words: str) -> tuple[int, dict[str, Any]]:
        code = main(["signing-key", *words, "--data", str(tmp_path / "data"), "--json"])
        return code, json.loads(capsys.readouterr().out)

    return call


def test_show_prints_what_devices_are_given(key: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["signing-key", "show", "--data", str(key.parent)]) == 0
    assert f"ZO_DEVICE_TRUSTED_KEY={open_signing_key(key).fingerprint}" in capsys.readouterr().out


def test_show_makes_no_key(call: Any, tmp_path: Path) -> None:
    code, answer = call("show")
    assert (code, answer["error"]["type"]) == (4, "not-found")
    assert not (tmp_path / "data").exists()


def test_rotate_makes_a_new_key_and_shows_what_it_has_replaced(call: Any, key: Path) -> None:
    old = open_signing_key(key).fingerprint
    code, answer = call("rotate")
    assert (code, answer["replaced"]) == (0, [old])
    assert answer["fingerprint"] == open_signing_key(key).fingerprint != old
    assert call("show")[1] == answer


def test_a_key_elsewhere_is_rotated_by_its_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "publisher.pem"
    old = open_signing_key(path).fingerprint
    assert main(["signing-key", "rotate", "--signing-key", str(path), "--delete-old", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["replaced"] == [old]
    assert not list(tmp_path.glob("*.retired"))


def test_a_key_is_not_rotated_under_a_running_service(call: Any, key: Path) -> None:
    with exclusive(key.parent / "service.lock"):
        code, answer = call("rotate")
    assert (code, answer["error"]["type"]) == (11, "conflict")
    assert open_signing_key(key).rotations == ()


def test_a_lost_key_is_replaced_only_after_the_operator_has_said_yes(call: Any, key: Path) -> None:
    key.unlink()
    assert call("show")[1]["error"]["type"] == "conflict"
    assert call("rotate")[1]["error"]["type"] == "conflict"
    code, answer = call("rotate", "--lost")
    assert (code, answer["error"]["param"]) == (2, "lost")
    assert "--yes-every-device-must-be-told" in answer["error"]["next_step"]
    assert not key.exists()
    code, answer = call("rotate", "--lost", "--yes-every-device-must-be-told")
    assert (code, answer["replaced"]) == (0, [])
    assert answer["fingerprint"] == open_signing_key(key).fingerprint


@pytest.mark.attack
def test_a_service_whose_key_was_lost_does_not_start_and_says_how_to_restore_it(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path / "data")
    with open_service(settings) as service:
        published = service.publisher
    settings.signing_key.unlink()
    answer = subprocess.run(
        [sys.executable, "-m", "cloud_service.cli", "serve", "--data", str(settings.data), "--port", "0"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert answer.returncode == 11
    assert published in answer.stderr
    assert "from its backup" in answer.stderr
    assert not settings.signing_key.exists()


def test_a_service_prints_and_logs_the_fingerprint_that_devices_need(make_service: Any) -> None:
    service = make_service().start()
    fingerprint = open_signing_key(service.data / "signing-key.pem").fingerprint
    assert f"ZO_DEVICE_TRUSTED_KEY={fingerprint}" in service.stderr.read_text()
    lines = [json.loads(line) for line in service.stdout.read_text().splitlines() if line.endswith("}")]
    messages = [line["message"] for line in lines if line.get("event") == "publisher"]
    assert messages == [f"bundles are signed by {fingerprint}"]


def test_the_service_signs_with_the_new_key_after_a_rotation(call: Any, key: Path) -> None:
    new = call("rotate")[1]["fingerprint"]
    with contextlib.ExitStack() as stack:
        assert stack.enter_context(open_service(Settings(data=key.parent))).publisher == new
