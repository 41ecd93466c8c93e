"""Who may call the server: programs of this machine that name it."""

from __future__ import annotations

import contextlib
import http.client
import signal
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from serving_device import Server, serving

from device_client.cli import main
from device_client.serving.guard import MOST_BODY_BYTES, check_request
from device_client.serving.openai_api import ApiError

HERE = {"host": "127.0.0.1:8080"}


def answered(server: Server, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
    """The status and the body of one request, with exactly these headers."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=20)
    connection.putrequest(method, path, skip_host="host" in headers, skip_accept_encoding=True)
    for name, value in {"content_length": str(len(body)), **headers}.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders(body)
    with contextlib.closing(connection):
        response = connection.getresponse()
        return response.status, response.read()


@pytest.mark.attack
@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[::1].evil", "[", "127.0.0.2", "a@localhost"],
)
def test_a_name_that_was_made_to_point_here_is_refused(host: str) -> None:
    with pytest.raises(ApiError) as error:
        check_request({"host": host}, None)
    assert error.value.status == 403


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8080", "localhost:1", "[::1]:8080", "LOCALHOST"])
def test_this_machines_own_names_are_answered(host: str) -> None:
    check_request({"host": host}, None)


@pytest.mark.attack
@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1.evil.example"])
def test_a_page_of_another_host_is_refused(origin: str) -> None:
    with pytest.raises(ApiError):
        check_request(HERE | {"origin": origin}, None)
    check_request(HERE | {"origin": "http://localhost:3000"}, None)


@pytest.mark.parametrize("presented", ["", "Bearer wrong", "Basic a2V5", "key ", "Bearer key2"])
def test_the_key_is_wanted_whole(presented: str) -> None:
    with pytest.raises(ApiError) as error:
        check_request(HERE | {"authorization": presented}, "key3")
    assert error.value.status == 401
    check_request(HERE | {"authorization": "Bearer key3"}, "key3")
    check_request(HERE, "key3", is_public=True)


@pytest.mark.attack
def test_a_running_server_answers_as_the_guard_says(server: Server) -> None:
    assert answered(server, "GET", "/healthz")[0] == 200
    assert answered(server, "GET", "/v1/models", host="evil.example")[0] == 403
    assert answered(server, "GET", "/v1/models", origin="https://evil.example")[0] == 403
    too_long = answered(server, "POST", "/v1/completions", content_length=str(MOST_BODY_BYTES + 1))
    assert (too_long[0], b"request_too_large" in too_long[1]) == (413, True)


@pytest.mark.attack
def test_a_page_cannot_send_json_without_asking_first(server: Server) -> None:
    """A page may send ``text/plain`` to any host; what it may not send unasked is JSON, and nothing else is read."""
    body = b'{"model": "tiny", "prompt": "a", "max_tokens": 1}'
    assert answered(server, "POST", "/v1/completions", body, content_type="text/plain")[0] == 400
    assert answered(server, "OPTIONS", "/v1/completions", origin="http://localhost:3000")[0] == 405
    status, text = answered(server, "POST", "/v1/completions", body, content_type="application/json")
    assert (status, b"choices" in text) == (200, True), text


@pytest.mark.parametrize(
    ("body", "code"), [(b"{", b"invalid_json"), (b"[]", b"invalid_value"), (b"\xff", b"invalid_json")]
)
def test_what_is_not_a_request_has_an_error_of_the_interface(server: Server, body: bytes, code: bytes) -> None:
    status, text = answered(server, "POST", "/v1/completions", body, content_type="application/json")
    assert (status, code in text) == (400, True)
    assert answered(server, "GET", "/v1/nothing")[0] == 404
    assert answered(server, "DELETE", "/v1/models")[0] == 405


def test_addresses_of_other_networks_are_refused(served_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZO_DEVICE_HOME", str(served_home))
    for host in ("0.0.0.0", "::", "192.168.0.1", "example.org"):  # noqa: S104 - refused
        assert main(["serve", "tiny", "--host", host]) == 2
    assert main(["serve", "tiny", "--port", "70000"]) == 2
    assert main(["serve", "tiny", "--offline"]) == 2


def test_a_port_in_use_is_named_before_anything_is_loaded(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ZO_DEVICE_HOME", str(server.home))
    port = str(urlsplit(server.url).port)

    assert main(["serve", "tiny", "--port", port]) == 11

    said = capsys.readouterr().err
    assert f"port {port}" in said
    assert "Loading" not in said


@pytest.mark.parametrize("content", ["", "two words", "\x07"])
def test_a_file_without_a_key_is_refused(
    served_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.setenv("ZO_DEVICE_HOME", str(served_home))
    (tmp_path / "key").write_text(content)
    assert main(["serve", "tiny", "--api-key-file", str(tmp_path / "key")]) == 9
    assert main(["serve", "tiny", "--api-key-file", str(tmp_path / "none")]) == 9


def test_a_signal_ends_the_server_with_status_0(served_home: Path) -> None:
    with serving(served_home) as server:
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(20) == 0
