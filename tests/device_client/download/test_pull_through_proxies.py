"""Pulling through real proxies, and what a person reads when one of them fails."""

from __future__ import annotations

import base64
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from forward_proxy import forward_proxy
from self_signed import make_certificate
from simulated_server import SimulatedServer, serving

from device_client.download.proxies import ProxySettings
from device_client.download.registry import Registry
from device_client.download.retry import TransientError
from device_client.download.transport import HttpTransport
from shared.bundle.layout import ImageLayout
from shared.errors import Forbidden, NetworkError, Unauthorized, ZoError

LOGIN = "user:s:cret"


class Place:
    """An encrypted server with a certificate of its own, and how to ask it."""

    def __init__(self, url: str, ca_file: Path) -> None:
        self.url, self.ca_file = url, ca_file

    def read(self, url: str | None = None, **environment: str) -> bytes:
        """Read the manifest with a transport that the environment describes."""
        proxies = ProxySettings.from_environment(environment)
        transport = HttpTransport(proxies=proxies, ca_file=self.ca_file, stall_seconds=2)
        try:
            with transport.get(f"{url or self.url}/v2/tiny/manifests/latest", {}) as answer:
                assert answer.status == 200
                return b"".join(answer.body)
        finally:
            transport.close()

    def fails(self, error: type[ZoError], url: str | None = None, **environment: str) -> str:
        with pytest.raises(error) as caught:
            self.read(url, **environment)
        assert "cret" not in str(caught.value) + repr(caught.value)
        return str(caught.value)


@pytest.fixture
def manifest(published: ImageLayout) -> bytes:
    return published.blob_path(published.resolve("tiny:latest").digest).read_bytes()


@pytest.fixture
def place(published: ImageLayout, tmp_path: Path) -> Iterator[Place]:
    files = make_certificate(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(files["tls_certificate"], files["tls_key"])
    with serving(SimulatedServer(published), tls=tls) as url:
        yield Place(url, Path(files["tls_certificate"]))


@pytest.fixture
def plain(published: ImageLayout) -> Iterator[str]:
    with serving(SimulatedServer(published)) as url:
        yield url


def unused_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


def test_an_encrypted_server_is_reached_by_connect(place: Place, manifest: bytes) -> None:
    with forward_proxy() as proxy:
        assert place.read(HTTPS_PROXY=f"http://{proxy.address}") == manifest
    assert proxy.seen == [f"CONNECT {place.url.removeprefix('https://')} HTTP/1.1"]


def test_a_plain_server_is_asked_for_by_its_whole_address(place: Place, plain: str, manifest: bytes) -> None:
    with forward_proxy(login=LOGIN) as proxy:
        assert place.read(plain, HTTP_PROXY=f"http://user:s%3Acret@{proxy.address}") == manifest
    assert proxy.seen == [f"GET {plain}/v2/tiny/manifests/latest HTTP/1.1"]


@pytest.mark.parametrize(("scheme", "host"), [("socks5", "address 127.0.0.1"), ("socks5h", "name localhost")])
def test_socks_is_spoken_and_names_are_looked_up_where_the_scheme_says(
    place: Place, plain: str, manifest: bytes, scheme: str, host: str
) -> None:
    url = plain.replace("127.0.0.1", "localhost")
    with forward_proxy(kind="socks", login=LOGIN) as proxy:
        assert place.read(url, ALL_PROXY=f"{scheme}://user:s%3Acret@{proxy.address}") == manifest
    assert proxy.seen == [f"{host}:{url.rpartition(':')[2]}"]


def test_no_proxy_goes_directly(place: Place, manifest: bytes) -> None:
    assert place.read(HTTPS_PROXY=f"http://{unused_address()}", NO_PROXY="10.0.0.0/8,127.0.0.0/8") == manifest


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "ALL_PROXY"])
def test_a_dead_proxy_is_named_with_what_to_check(place: Place, variable: str) -> None:
    address = unused_address()
    told = place.fails(TransientError, **{variable: f"http://user:s%3Acret@{address}"})
    assert f"the proxy http://{address} ({variable}) cannot be reached: " in told
    assert "refused" in told
    assert f"Next: check {variable}; servers that need no proxy are named in NO_PROXY" in told


@pytest.mark.parametrize("url", ["encrypted", "plain"])
def test_a_proxy_that_wants_a_login_is_told_apart_from_one_that_refuses_it(place: Place, plain: str, url: str) -> None:
    asked, variable = (place.url, "HTTPS_PROXY") if url == "encrypted" else (plain, "HTTP_PROXY")
    with forward_proxy(login=LOGIN) as proxy:
        told = place.fails(Unauthorized, asked, **{variable: f"http://{proxy.address}"})
        assert f"the proxy http://{proxy.address} ({variable}) wants a user name" in told
        assert f"write them into {variable}: http://USER:PASSWORD@{proxy.address}" in told
        told = place.fails(Unauthorized, asked, **{variable: f"http://user:other-s%3Acret@{proxy.address}"})
        assert "refuses the user name and password" in told


def test_a_socks_proxy_that_wants_a_login_is_named(place: Place) -> None:
    with forward_proxy(kind="socks", login=LOGIN) as proxy:
        assert "wants a user name" in place.fails(Unauthorized, ALL_PROXY=f"socks5://{proxy.address}")
        told = place.fails(Unauthorized, ALL_PROXY=f"socks5://user:other-cret@{proxy.address}")
        assert "refuses the user name and password" in told


@pytest.mark.parametrize(("kind", "answers"), [("http", "403 Forbidden"), ("socks", "2")])
def test_a_proxy_that_forbids_the_server_is_named_and_not_asked_again(place: Place, kind: str, answers: str) -> None:
    with forward_proxy(kind=kind, answers=answers) as proxy:
        scheme = "socks5" if kind == "socks" else "http"
        told = place.fails(NetworkError, ALL_PROXY=f"{scheme}://{proxy.address}")
    assert f"the proxy {scheme}://{proxy.address} (ALL_PROXY) refuses to connect to 127.0.0.1:" in told
    assert "name it in NO_PROXY or unset ALL_PROXY" in told


@pytest.mark.parametrize(("kind", "answers"), [("http", "502 Bad Gateway"), ("socks", "5")])
def test_a_proxy_that_cannot_reach_the_server_is_tried_again(place: Place, kind: str, answers: str) -> None:
    with forward_proxy(kind=kind, answers=answers) as proxy:
        scheme = "socks5" if kind == "socks" else "http"
        told = place.fails(TransientError, ALL_PROXY=f"{scheme}://{proxy.address}")
    assert "(ALL_PROXY) cannot connect to 127.0.0.1:" in told


def test_a_server_that_is_not_a_proxy_is_named(place: Place, plain: str) -> None:
    told = place.fails(NetworkError, HTTPS_PROXY=plain)
    assert f"the proxy {plain} (HTTPS_PROXY)" in told


def test_an_answer_of_a_server_names_the_proxy_that_it_came_through(place: Place, plain: str) -> None:
    with forward_proxy() as proxy:
        transport = HttpTransport(proxies=ProxySettings.from_environment({"HTTP_PROXY": f"http://{proxy.address}"}))
        with transport.get(f"{plain}/v2/none/manifests/latest", {}) as answer:
            assert (answer.status, answer.via) == (404, f" through the proxy http://{proxy.address} (HTTP_PROXY)")
        transport.close()


def test_a_refusal_that_may_be_the_proxys_own_says_so(place: Place, plain: str) -> None:
    """Where the proxy is asked for the whole address, nothing tells whose answer it is."""
    with forward_proxy(answers="403 Forbidden") as proxy:
        transport = HttpTransport(proxies=ProxySettings.from_environment({"HTTP_PROXY": f"http://{proxy.address}"}))
        with pytest.raises(
            Forbidden, match=r"through the proxy http://127\.0\.0\.1:\d+ \(HTTP_PROXY\) answers 403"
        ) as caught:
            Registry(transport, plain).manifest("tiny", "latest", max_bytes=1000)
        transport.close()
    assert "where it is the proxy that refuses, ask who runs it" in caught.value.next_step


def test_a_certificate_that_nobody_vouches_for_is_refused_and_says_what_to_set(place: Place) -> None:
    transport = HttpTransport(stall_seconds=2)
    with pytest.raises(NetworkError, match=r"the certificate of 127\.0\.0\.1 is not trusted") as caught:
        transport.get(place.url, {}).__enter__()
    assert not isinstance(caught.value, TransientError)
    assert "set SSL_CERT_FILE" in caught.value.next_step


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_file_of_certificates_that_cannot_be_used_is_named(place: Place, tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "own.pem").write_text(content)
    place.ca_file = tmp_path / "own.pem"
    assert f"SSL_CERT_FILE names {tmp_path / 'own.pem'}, which cannot be used" in place.fails(NetworkError)


def test_the_login_of_a_proxy_never_reaches_the_server(published: ImageLayout, place: Place) -> None:
    server = SimulatedServer(published)
    with serving(server) as url, forward_proxy(login=LOGIN) as proxy:
        place.read(url, HTTP_PROXY=f"http://user:s%3Acret@{proxy.address}")
    secret = base64.b64encode(LOGIN.encode()).decode()
    assert not any(secret in value for request, _ in server.answers for value in request.headers.values())
