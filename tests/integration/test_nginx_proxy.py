"""The example of a reverse proxy, run by the real nginx in front of a service process."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
EXAMPLE = CHECKOUT / "deploy" / "nginx" / "zo-cloud.conf"
FAKE_SERVICE = CHECKOUT / "tests" / "cloud_service" / "service" / "serve_fake.py"
DEADLINE_SECONDS = 60
MAIN = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log; events {{ }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  include {folder}/zo-cloud.conf;
}}
"""


class Proxied(NamedTuple):
    """A service behind nginx: a client of nginx, the service's process, folders and log."""

    client: httpx.Client
    service: subprocess.Popen[bytes]
    model: Path
    log: Path

    @property
    def address(self) -> tuple[str, int]:
        """Nginx's."""
        return self.client.base_url.host, self.client.base_url.port or 0

    def prepare(self) -> dict[str, Any]:
        """Start a job."""
        job: dict[str, Any] = self.client.post("/prepare-model", json={"model": "tiny", "force": True}).json()
        return job

    def wait(self, job_id: str) -> dict[str, Any]:
        """Wait until a job succeeded and return its result."""
        while (job := self.client.get(f"/v1/jobs/{job_id}").json())["status"] != "succeeded":
            assert job["status"] in ("queued", "running"), job
            time.sleep(0.02)
        result: dict[str, Any] = job["result"]
        return result


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Any) -> Iterator[Proxied]:
    folder = tmp_path_factory.mktemp("proxied")
    model = folder / "models" / "tiny"
    model.mkdir(parents=True)
    (model / "content").write_text("weights")
    shutil.copytree(tiny_bundle.layout.root, model / "bundle")
    settings = {
        "data": str(folder / "data"), "model_roots": [str(folder / "models")], "port": 0, "min_free_bytes": 0,
        "poll_seconds": 0.05, "progress_seconds": 0.0, "forwarded_allow_ips": ["127.0.0.1"],
        "max_connections_per_address": 0, "max_wrong_keys_per_minute": 2,
    }  # fmt: skip
    log, errors = folder / "service.log", folder / "service.err"
    with log.open("wb") as output, errors.open("wb") as error_output:
        service = subprocess.Popen(
            [sys.executable, str(FAKE_SERVICE), json.dumps(settings), "fake_job.py"], stdout=output, stderr=error_output
        )
    try:
        behind = _wait_for_match(log, r'"url": "http://([0-9.:]+)"', service)
        key = _wait_for_match(errors, r"(zo_\w+_\S+)", service)
        with socket.create_server(("127.0.0.1", 0)) as free:
            front = f"127.0.0.1:{free.getsockname()[1]}"
        example = EXAMPLE.read_text()
        example = example.replace("server 127.0.0.1:8080;", f"server {behind};").replace(
            "listen 80;", f"listen {front};"
        )
        assert behind in example
        assert front in example
        (folder / "zo-cloud.conf").write_text(example)
        (folder / "nginx.conf").write_text(MAIN.format(folder=folder))
        nginx = subprocess.Popen(["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")])
        try:
            headers = {"Authorization": f"Bearer {key}"}
            with httpx.Client(base_url=f"http://{front}", headers=headers, timeout=30) as client:
                _wait_until_up(client, nginx)
                yield Proxied(client, service, model, log)
        finally:
            nginx.terminate()
            nginx.wait(DEADLINE_SECONDS)
    finally:
        service.terminate()
        service.wait(DEADLINE_SECONDS)


def _wait_for_match(file: Path, pattern: str, process: subprocess.Popen[bytes]) -> str:
    end = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < end and process.poll() is None:
        if match := re.search(pattern, file.read_text()):
            return match.group(1)
        time.sleep(0.03)
    pytest.fail(f"no {pattern} in {file.read_text()}")


def _wait_until_up(client: httpx.Client, nginx: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < end and nginx.poll() is None:
        try:
            assert client.get("/healthz").json() == {"status": "ok"}
        except httpx.ConnectError:
            time.sleep(0.03)
        else:
            return
    pytest.fail("nginx does not answer")


def test_a_blob_passes_whole_and_in_part_with_its_key(proxied: Proxied) -> None:
    result = proxied.wait(proxied.prepare()["id"])
    manifest = proxied.client.get(f"/v2/{result['name']}/manifests/{result['digest']}").json()
    blob = max(manifest["layers"], key=lambda layer: layer["size"])
    url = f"/v2/{result['name']}/blobs/{blob['digest']}"
    data = (proxied.model / "bundle" / "blobs" / "sha256" / blob["digest"].removeprefix("sha256:")).read_bytes()
    assert proxied.client.get(url).content == data
    part = proxied.client.get(url, headers={"Range": "bytes=5-104"})
    assert (part.status_code, part.content) == (206, data[5:105])
    assert httpx.get(f"{proxied.client.base_url}{url}").status_code == 401


def test_the_proxys_own_address_is_where_a_key_becomes_a_token(proxied: Proxied) -> None:
    here, key = str(proxied.client.base_url).rstrip("/"), proxied.client.headers["Authorization"].partition(" ")[2]
    challenge = httpx.get(f"{here}/v2/").headers["www-authenticate"]
    assert challenge == f'Bearer realm="{here}/v2/token",service="{here.removeprefix("http://")}"'
    token = httpx.get(f"{here}/v2/token", auth=("any", key)).json()["token"]
    assert httpx.get(f"{here}/v2/", headers={"Authorization": f"Bearer {token}"}).status_code == 200


def test_events_arrive_while_the_job_still_runs(proxied: Proxied) -> None:
    (proxied.model / "hold").write_text("calibrating")
    job_id = proxied.prepare()["id"]
    with proxied.client.stream("GET", f"/v1/jobs/{job_id}/events", headers={"Accept": "text/event-stream"}) as stream:
        lines = stream.iter_lines()
        assert next(line for line in lines if line.startswith("data:"))
        assert proxied.client.get(f"/v1/jobs/{job_id}").json()["status"] in ("queued", "running")
        (proxied.model / "hold").unlink()
        assert any('"succeeded"' in line for line in lines)


@pytest.mark.attack
def test_half_open_connections_stay_at_the_proxy(proxied: Proxied) -> None:
    before = _open_sockets(proxied.service.pid)
    silent = [socket.create_connection(proxied.address, 10) for _ in range(60)]
    try:
        for client in silent[:-1]:
            client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow:")
        for client in silent[:20]:
            client.sendall(b"1\r\nContent-Length: 100\r\n\r\n")
        assert proxied.client.get("/healthz").status_code == 200
        assert _open_sockets(proxied.service.pid) <= before + 2
    finally:
        for client in silent:
            client.close()


@pytest.mark.attack
def test_a_large_body_is_refused_by_the_proxy(proxied: Proxied) -> None:
    lines = proxied.log.read_text().count("/prepare-model")
    assert proxied.client.post("/prepare-model", content=bytes(64 * 1024 + 1)).status_code == 413
    assert proxied.log.read_text().count("/prepare-model") == lines


@pytest.mark.attack
def test_a_claimed_address_does_not_help_a_client_that_tries_keys(proxied: Proxied) -> None:
    with httpx.Client(base_url=proxied.client.base_url, headers={"Authorization": "Bearer wrong"}) as stranger:
        tries = [stranger.get("/v1/jobs", headers={"X-Forwarded-For": f"192.0.2.{n}"}) for n in range(4)]
    assert [answer.status_code for answer in tries] == [401, 401, 429, 429]
    assert proxied.client.get("/v1/jobs").status_code == 200


def _open_sockets(pid: int) -> int:
    links = [path.readlink() for path in Path(f"/proc/{pid}/fd").iterdir()]
    return sum(str(link).startswith("socket:") for link in links)
