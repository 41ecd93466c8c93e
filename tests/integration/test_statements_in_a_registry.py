"""Statements in somebody else's registry, carried there by somebody else's tool: docker-registry and skopeo."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from simulated_server import OTHER_KEY, fingerprint, sign_reference
from tiny_bundle import TinyBundle

from device_client.cli import main
from shared.bundle.layout import ImageLayout

DEADLINE_SECONDS = 30


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """The address of a docker-registry of its own."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    configuration = {
        "version": 0.1,
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(tmp_path / "registry")}},
        "http": {"addr": address},
    }
    (tmp_path / "registry.yml").write_text(json.dumps(configuration))
    with (tmp_path / "registry.log").open("w") as log:
        process = subprocess.Popen(
            ["docker-registry", "serve", str(tmp_path / "registry.yml")], stdout=log, stderr=subprocess.STDOUT
        )
    try:
        wait_until_it_answers(f"http://{address}/v2/")
        yield address
    finally:
        process.kill()
        process.wait()


def wait_until_it_answers(url: str) -> None:
    end = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < end:
        try:
            httpx.get(url)
        except httpx.TransportError:
            time.sleep(0.02)
        else:
            return
    pytest.fail(f"{url} does not answer")


@pytest.fixture
def pull(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    monkeypatch.setenv("ZO_DEVICE_HOME", str(tmp_path / "home"))
    for name in ("ZO_DEVICE_SERVER", "ZO_DEVICE_API_KEY", "ZO_DEVICE_TRUSTED_KEY"):
        monkeypatch.delenv(name, raising=False)

    def pull(*words: str) -> dict[str, Any]:
        main(["--json", "pull", *words])
        answer: dict[str, Any] = json.loads(capsys.readouterr().out)
        return answer

    return pull


def copy(source: str, target: str) -> None:
    options = ["--src-tls-verify=false", "--dest-tls-verify=false"]
    subprocess.run(["skopeo", "copy", *options, source, target], check=True, capture_output=True, timeout=60)


def test_a_registry_carries_bundle_and_statements_and_its_owner_cannot_move_a_tag(
    registry: str, tiny_bundle: TinyBundle, tmp_path: Path, pull: Callable[..., Any]
) -> None:
    shutil.copytree(tiny_bundle.layout.root, tmp_path / "layout")
    layout = ImageLayout(tmp_path / "layout")
    sign_reference(layout, "tiny:latest", OTHER_KEY)
    for reference in layout.references():
        copy(f"oci:{layout.root}:{reference}", f"docker://{registry}/{reference}")
    pulled = pull(f"http://{registry}/tiny")
    assert (pulled["digest"], pulled["publisher"]) == (tiny_bundle.digest, fingerprint(OTHER_KEY))
    assert pulled["release"]["tag"] == "latest"

    copy(f"docker://{registry}/tiny:latest", f"docker://{registry}/tiny:stable")
    assert pull(f"http://{registry}/tiny:stable")["error"]["type"] == "other-name"
    assert pull(f"http://{registry}/tiny:stable", "--published-as", "tiny:latest")["digest"] == tiny_bundle.digest
