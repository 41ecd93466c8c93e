"""The one door to the network, against real sockets on 127.0.0.1."""

from __future__ import annotations

import gzip
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from device_client.download.retry import TransientError
from device_client.download.transport import HttpTransport
from shared.errors import NetworkError


@contextmanager
def saying(words: bytes, *, hangs_up: bool = True) -> Iterator[str]:
    """Answer one connection with ``words``, then hang up or fall silent."""
    done = threading.Event()

    def speak(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(words)
            if not hangs_up:
                done.wait(10)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=speak, args=(listener,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        finally:
            done.set()
            thread.join()


@pytest.fixture
def transport() -> Iterator[HttpTransport]:
    transport = HttpTransport(stall_seconds=0.3)
    yield transport
    transport.close()


def body_of(transport: HttpTransport, url: str) -> bytes:
    with transport.get(url, {}) as answer:
        return b"".join(answer.body)


def test_the_body_comes_as_it_was_sent(transport: HttpTransport) -> None:
    packed = gzip.compress(b"weights" * 100)
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(packed)}\r\n\r\n".encode()
    with saying(head + packed) as url:
        assert body_of(transport, url) == packed


def test_statuses_are_passed_on_and_redirects_not_followed(transport: HttpTransport) -> None:
    words = b"HTTP/1.1 302 Found\r\nLocation: http://elsewhere.test/\r\nContent-Length: 0\r\n\r\n"
    with saying(words) as url, transport.get(url, {}) as answer:
        assert (answer.status, answer.headers["location"]) == (302, "http://elsewhere.test/")


@pytest.mark.parametrize(
    "words",
    [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this", b"no HTTP at all\r\n\r\n"],
    ids=["nothing", "half a body", "nonsense"],
)
def test_a_broken_answer_is_transient(transport: HttpTransport, words: bytes) -> None:
    with saying(words) as url, pytest.raises(TransientError):
        body_of(transport, url)


@pytest.mark.parametrize("words", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this"])
def test_a_stalled_answer_is_transient(transport: HttpTransport, words: bytes) -> None:
    with saying(words, hangs_up=False) as url, pytest.raises(TransientError, match="in time"):
        body_of(transport, url)


def test_a_refused_connection_is_transient(transport: HttpTransport) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    with pytest.raises(TransientError, match="refused"):
        body_of(transport, url)


def test_messages_do_not_repeat_a_query_that_may_hold_a_token(transport: HttpTransport) -> None:
    with saying(b"") as url, pytest.raises(TransientError) as caught:
        body_of(transport, url + "x?token=secret")
    assert "secret" not in str(caught.value)


def test_an_unusable_address_is_no_transient_error(transport: HttpTransport) -> None:
    with pytest.raises(NetworkError) as caught:
        body_of(transport, "http://exa mple.test:port/")
    assert not isinstance(caught.value, TransientError)
