"""The real ``zo-device pull`` process against a real HTTP server: kills, exit codes, one JSON object."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from simulated_server import Answer, Request, SimulatedServer, serving

from shared.bundle.layout import ImageLayout
from shared.bundle.manifest import Descriptor, parse_manifest
from shared.bundle.read import read_bundle

CHUNK = 4096
COMMAND = [sys.executable, "-c", "import sys; from device_client.cli import main; sys.exit(main())"]


@pytest.fixture
def address(server: SimulatedServer) -> Iterator[str]:
    with serving(server) as url:
        yield url


def start(home: Path, *words: str, **variables: str) -> subprocess.Popen[str]:
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "COVERAGE_PROCESS_START") if name in os.environ}
    environment = {**kept, "ZO_DEVICE_HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1", **variables}
    return subprocess.Popen(
        [*COMMAND, *words], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, dict[str, Any], str]:
    """Return exit code, the one JSON object, and what people were told."""
    out, told = process.communicate(timeout=60)
    return process.returncode, json.loads(out), told


def run(home: Path, *words: str, **variables: str) -> tuple[int, dict[str, Any], str]:
    return finish(start(home, "--json", *words, **variables))


class Gate:
    """Lets the first answers of a blob through and holds the others, so that a kill meets a download half done."""

    def __init__(self, digest: str, passes: int) -> None:
        self.digest, self.passes = digest, passes
        self.reached, self.opened = threading.Event(), threading.Event()
        self._lock = threading.Lock()

    def strikes(self, request: Request) -> bool:
        return request.path.endswith(self.digest) and request.span is not None

    def change(self, request: Request, answer: Answer) -> Answer:
        with self._lock:
            self.passes -= 1
            is_held = self.passes < 0
        if is_held:
            self.reached.set()
            self.opened.wait(30)
        return answer


def test_killed_in_mid_download_a_second_pull_fetches_only_the_missing_chunks(
    tmp_path: Path, server: SimulatedServer, address: str, trunk: Descriptor
) -> None:
    home = tmp_path / "device"
    gate = Gate(trunk.digest, passes=3)
    server.misbehave(gate.strikes, gate.change, times=100)
    process = start(home, "pull", f"{address}/tiny", "--connections", "1")
    assert gate.reached.wait(30)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    gate.opened.set()
    server.faults.clear()

    store = ImageLayout(home / "bundles")
    journal = (store.root / "partial" / f"{trunk.digest[7:]}.journal").read_text().splitlines()
    assert [line.split()[0] for line in journal] == ["0", "4096", "8192"]
    assert store.references() == {}
    remembered = json.loads((home / "trusted_keys.json").read_text())
    assert (remembered["pins"], list(remembered["releases"])) == ({}, [f"{address}/tiny"])

    layers = parse_manifest(
        server.layout.read_blob(server.layout.resolve("tiny:latest").digest, max_bytes=1 << 20)
    ).layers
    missing_bytes = sum(layer.size for layer in layers if not store.has_blob(layer.digest)) - 3 * CHUNK
    code, result, _ = run(home, "pull", f"{address}/tiny", "--connections", "1")
    assert code == 0
    assert result["fetched_bytes"] == missing_bytes
    begins = [r.span[0] for r, _ in server.answers if r.path.endswith(trunk.digest) and r.span]
    assert [begins.count(begin) for begin in (0, 4096, 8192, 12288, 16384)] == [1, 1, 1, 2, 1]
    assert read_bundle(store, store.resolve("tiny:latest").digest).config.producer == "tests"


def test_killed_again_and_again_it_still_ends_with_every_layer_byte_fetched_once(
    tmp_path: Path, server: SimulatedServer, address: str, trunk: Descriptor
) -> None:
    home = tmp_path / "device"
    for _ in range(2):
        gate = Gate(trunk.digest, passes=1)
        server.misbehave(gate.strikes, gate.change, times=100)
        process = start(home, "pull", f"{address}/tiny", "--connections", "1")
        assert gate.reached.wait(30)
        process.kill()
        process.communicate()
        gate.opened.set()
        server.faults.clear()
    code, _, _ = run(home, "pull", f"{address}/tiny", "--connections", "1")
    assert code == 0
    held = [r.span for r, _ in server.answers if r.path.endswith(trunk.digest)]
    begins = [span[0] for span in held if span]
    assert sorted(set(begins)) == [0, 4096, 8192, 12288, 16384]
    assert len(begins) == 5 + 2


def test_an_interrupt_ends_with_130_and_says_how_to_go_on(
    tmp_path: Path, server: SimulatedServer, address: str, trunk: Descriptor
) -> None:
    gate = Gate(trunk.digest, passes=0)
    server.misbehave(gate.strikes, gate.change, times=100)
    process = start(tmp_path / "device", "--json", "pull", f"{address}/tiny", "--connections", "1")
    assert gate.reached.wait(30)
    process.send_signal(signal.SIGINT)
    try:
        code, result, told = finish(process)
    finally:
        gate.opened.set()
    assert code == 130
    assert result["error"]["type"] == "interrupted"
    assert "same command again" in told


def test_pulling_twice_prints_one_object_each_and_the_second_is_a_no_op(tmp_path: Path, address: str) -> None:
    home = tmp_path / "device"
    code, first, told = run(home, "pull", f"{address}/tiny")
    assert (code, first["was_complete"], first["is_first_contact"]) == (0, False, True)
    assert "First contact" in told
    code, second, told = run(home, "pull", f"{address}/tiny")
    assert (code, second["was_complete"], second["fetched_bytes"]) == (0, True, 0)
    assert "up to date" in told
    assert home.stat().st_mode & 0o777 == 0o700


def test_without_a_reference_the_only_bundle_of_the_server_is_pulled(tmp_path: Path, address: str) -> None:
    code, result, _ = run(tmp_path / "device", "pull", ZO_DEVICE_SERVER=address)
    assert (code, result["reference"]) == (0, "tiny:latest")


def test_a_missing_key_exits_3_and_a_key_file_helps(tmp_path: Path, server: SimulatedServer, address: str) -> None:
    server.api_key = "zo_secret"
    code, result, told = run(tmp_path / "device", "pull", f"{address}/tiny")
    assert (code, result["error"]["type"]) == (3, "unauthorized")
    assert "ZO_DEVICE_API_KEY" in told
    (tmp_path / "key").write_text("zo_secret\n")
    code, _, told = run(tmp_path / "device", "pull", f"{address}/tiny", "--api-key-file", str(tmp_path / "key"))
    assert code == 0
    assert "zo_secret" not in told


def test_an_unknown_bundle_exits_4_and_lists_what_there_is(tmp_path: Path, address: str) -> None:
    code, result, _ = run(tmp_path / "device", "pull", f"{address}/huge")
    assert (code, result["error"]["type"]) == (4, "not-found")
    assert "tiny:latest" in result["error"]["needed"]


def test_a_truncated_blob_exits_5_and_nothing_is_visible(
    tmp_path: Path, address: str, published: ImageLayout, trunk: Descriptor
) -> None:
    published.blob_path(trunk.digest).write_bytes(b"short")
    code, result, _ = run(tmp_path / "device", "pull", f"{address}/tiny")
    assert (code, result["error"]["type"]) == (5, "blob-truncated")
    assert ImageLayout(tmp_path / "device" / "bundles").references() == {}


def test_a_wrong_trusted_key_exits_5(tmp_path: Path, address: str) -> None:
    code, result, _ = run(tmp_path / "device", "pull", f"{address}/tiny", ZO_DEVICE_TRUSTED_KEY="ed25519:" + "0" * 64)
    assert (code, result["error"]["type"]) == (5, "publisher-changed")


def test_a_refused_connection_exits_6(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    code, result, _ = run(tmp_path / "device", "pull", f"http://127.0.0.1:{port}/tiny", "--retries", "0")
    assert (code, result["error"]["type"]) == (6, "network-error")
    assert "again" in result["error"]["next_step"]


def test_the_proxy_of_the_environment_is_used(tmp_path: Path, server: SimulatedServer, address: str) -> None:
    """No such host exists; only the proxy can answer for it."""
    code, result, _ = run(tmp_path / "device", "pull", "http://models.test/tiny", "--retries", "0", http_proxy=address)
    assert (code, result["source"]) == (0, "http://models.test/tiny")
    assert {request.url.split("/")[2] for request, _ in server.answers} == {"models.test"}


def test_offline_opens_no_socket_and_is_a_no_op_on_what_is_here(
    tmp_path: Path, server: SimulatedServer, address: str
) -> None:
    home = tmp_path / "device"
    code, result, _ = run(home, "--offline", "pull", f"{address}/tiny")
    assert (code, result["error"]["type"]) == (6, "network-error")
    assert server.answers == []
    run(home, "pull", f"{address}/tiny")
    server.answers.clear()
    code, result, _ = run(home, "pull", f"{address}/tiny", "--offline")
    assert (code, result["was_complete"]) == (0, True)
    assert server.answers == []


def test_a_name_without_a_server_is_a_wrong_call(tmp_path: Path) -> None:
    code, result, _ = run(tmp_path / "device", "pull", "tiny")
    assert code == 2
    assert "ZO_DEVICE_SERVER" in result["error"]["next_step"]


def test_the_remote_list_names_bundles(tmp_path: Path, address: str) -> None:
    code, result, told = run(tmp_path / "device", "list", "--remote", "--server", address)
    assert code == 0
    assert [bundle["name"] for bundle in result["bundles"]] == ["tiny"]
    assert "tests/tiny" in told
