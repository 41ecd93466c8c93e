"""How the service is reached: TLS, logs, ports."""

from __future__ import annotations

import hashlib
import json
import socket
import ssl
import stat
from pathlib import Path
from typing import Any

import httpx
import pytest
from self_signed import make_certificate

from cloud_service.app import open_service
from cloud_service.settings import Settings


def test_what_killed_jobs_left_in_the_store_is_removed_at_the_start(tmp_path: Path) -> None:
    left = tmp_path / "store" / ".writing-abc"
    left.mkdir(parents=True)
    (left / "block-00000.safetensors").write_bytes(b"half")
    with open_service(Settings(data=tmp_path)):
        assert not left.exists()


def test_with_a_certificate_the_service_speaks_tls_only(make_service: Any, tmp_path: Path) -> None:
    service = make_service(**make_certificate(tmp_path)).start()
    trust = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
    url = str(service.client.base_url)
    assert url.startswith("https://127.0.0.1:")
    assert httpx.get(f"{url}/healthz", verify=trust).json() == {"status": "ok"}
    try:
        plain = httpx.get(f"{url}/healthz".replace("https", "http")).status_code
    except httpx.TransportError:
        plain = None
    assert plain != 200


@pytest.mark.attack
def test_connections_that_never_begin_tls_are_closed_to_make_room(make_service: Any, tmp_path: Path) -> None:
    limits = {"max_connections": 16, "max_connections_per_address": 0, "header_timeout_seconds": 60}
    service = make_service(**limits, **make_certificate(tmp_path)).start()
    address = service.client.base_url.host, service.client.base_url.port
    trust = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
    silent = [socket.create_connection(address, 20) for _ in range(100)]
    try:
        assert httpx.get(f"{service.client.base_url}/healthz", verify=trust).json() == {"status": "ok"}
        assert silent[0].recv(1) == b""
    finally:
        for client in silent:
            client.close()


@pytest.mark.attack
def test_a_tls_handshake_that_takes_too_long_is_cut_off(make_service: Any, tmp_path: Path) -> None:
    service = make_service(header_timeout_seconds=0.2, **make_certificate(tmp_path)).start()
    address = service.client.base_url.host, service.client.base_url.port
    with socket.create_connection(address, 20) as client:
        client.sendall(b"\x16\x03\x01")
        assert client.recv(1) == b""


@pytest.mark.parametrize("has_tls", [False, True])
def test_blobs_arrive_whole_and_in_part_over_plain_and_tls_connections(
    make_service: Any, tmp_path: Path, has_tls: bool
) -> None:
    service = make_service(**(make_certificate(tmp_path) if has_tls else {})).start()
    trust = ssl.create_default_context(cafile=str(tmp_path / "cert.pem")) if has_tls else True
    with httpx.Client(base_url=service.client.base_url, headers=service.client.headers, verify=trust) as client:
        job = client.post("/prepare-model", json={"model": service.model}).json()
        while client.get(f"/v1/jobs/{job['id']}").json()["status"] != "succeeded":
            pass
        result = client.get(f"/v1/jobs/{job['id']}").json()["result"]
        manifest = client.get(f"/v2/{result['name']}/manifests/{result['digest']}").json()
        for blob in manifest["layers"]:
            url = f"/v2/{result['name']}/blobs/{blob['digest']}"
            whole = client.get(url)
            assert "sha256:" + hashlib.sha256(whole.content).hexdigest() == blob["digest"]
            part = client.get(url, headers={"Range": "bytes=3-"})
            assert (part.status_code, part.content) == (206, whole.content[3:])
            assert int(client.head(url).headers["content-length"]) == blob["size"]


def test_every_log_line_is_json_and_a_job_can_be_followed_from_its_request(service: Any) -> None:
    answer = service.client.post("/prepare-model", json={"model": service.model})
    job_id = answer.json()["id"]
    service.wait(job_id)
    lines = [json.loads(line) for line in service.stdout.read_text().splitlines()]
    (queued,) = [line for line in lines if line["message"] == "job queued" and line["job_id"] == job_id]
    assert queued["request_id"] == answer.headers["x-request-id"]
    assert [line["attempt"] for line in lines if line.get("job_id") == job_id and "claimed" in line["message"]] == [1]
    (answered,) = [
        line for line in lines if line.get("request_id") == queued["request_id"] and line.get("status") == 202
    ]
    assert (answered["method"], answered["path"]) == ("POST", "/prepare-model")
    assert service.first_key() not in service.stdout.read_text()


def test_what_a_running_service_makes_is_for_its_user_alone(service: Any) -> None:
    job_id = service.post()["id"]
    service.wait(job_id)
    readable = [
        path
        for path in service.data.rglob("*")
        if (path.is_dir() or path.is_file()) and stat.S_IMODE(path.stat().st_mode) & 0o077 and "blobs" not in path.parts
    ]
    assert readable == []
