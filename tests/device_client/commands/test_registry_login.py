"""User names and logins at the command line: what is presented, and where it is not."""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from self_signed import make_certificate
from simulated_server import Answer, Request, SimulatedServer, serving

from shared.bundle.layout import ImageLayout

BASIC = "Basic " + base64.b64encode(b"user:kept secret").decode()


class BasicServer(SimulatedServer):
    """Wants the login of one user."""

    def answer(self, request: Request) -> Answer:
        if request.headers.get("Authorization") == BASIC:
            return super().answer(request)
        answer = Answer(401, {"WWW-Authenticate": 'Basic realm="models"'}, b"")
        self.answers.append((request, answer))
        return answer


@pytest.fixture
def server(exported: ImageLayout) -> BasicServer:
    return BasicServer(exported)


@pytest.fixture
def address(server: BasicServer) -> Iterator[str]:
    with serving(server) as url:
        yield url


def keep_login(file: Path, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a file as ``docker login`` does."""
    file.write_text(json.dumps({"auths": {host: {"auth": BASIC.removeprefix("Basic ")}}}))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(file))


def test_a_user_name_makes_the_key_file_a_password(command, address: str, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("kept-secret\n")
    words = ("pull", f"{address}/tiny", "--username", "user", "--api-key-file", str(tmp_path / "password"))
    assert command(*words).code == 3
    (tmp_path / "password").write_text("kept secret\n")
    outcome = command(*words)
    assert (outcome.code, outcome.result["reference"]) == (0, "tiny:latest")


def test_a_user_name_without_a_password_is_a_wrong_call(command, address: str) -> None:
    outcome = command("pull", f"{address}/tiny", "--username", "user")
    assert (outcome.code, outcome.result["error"]["param"]) == (2, "username")
    assert "--api-key-file FILE" in outcome.result["error"]["next_step"]


def test_a_login_that_docker_keeps_is_used_on_this_machine(
    command, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_login(tmp_path / "config.json", address.removeprefix("http://"), monkeypatch)
    assert command("pull", f"{address}/tiny").code == 0


@pytest.mark.attack
def test_a_login_that_docker_keeps_is_not_sent_over_an_open_line(
    command, server: BasicServer, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reference that somebody passes on decides whether TLS is spoken; the address is a proxy for any host."""
    keep_login(tmp_path / "config.json", "models.test", monkeypatch)
    monkeypatch.setenv("http_proxy", address)
    outcome = command("pull", "http://models.test/tiny")
    assert outcome.code == 3
    assert "is not sent to models.test unencrypted" in outcome.told
    assert not any("Authorization" in request.headers for request, _ in server.answers)
    assert server.answers


def test_an_authority_of_ones_own_is_trusted_by_ssl_cert_file(
    command, exported: ImageLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = make_certificate(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(files["tls_certificate"], files["tls_key"])
    with serving(SimulatedServer(exported), tls=tls) as url:
        outcome = command("pull", f"{url}/tiny")
        assert (outcome.code, outcome.result["error"]["type"]) == (6, "network-error")
        assert "set SSL_CERT_FILE" in outcome.result["error"]["next_step"]
        monkeypatch.setenv("SSL_CERT_FILE", files["tls_certificate"])
        assert command("pull", f"{url}/tiny").code == 0
