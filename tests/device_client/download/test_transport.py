"""The one door to the network, against real sockets on 127.0.0.1."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_server import SimulatedServer, serving

from device_client.download.retry import TransientError
from device_client.download.transport import HttpTransport
from shared.bundle.layout import ImageLayout
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


def test_a_body_in_chunks_comes_whole(transport: HttpTransport) -> None:
    words = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nwei\n\r\n3\r\nghs\r\n0\r\n\r\n"
    with saying(words) as url:
        assert body_of(transport, url) == b"wei\nghs"


def test_a_body_without_a_length_ends_with_the_connection(transport: HttpTransport) -> None:
    with saying(b"HTTP/1.1 200 OK\r\n\r\nweights") as url:
        assert body_of(transport, url) == b"weights"


def test_interim_answers_are_passed_over(transport: HttpTransport) -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
    with saying(hints + b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc") as url:
        assert body_of(transport, url) == b"abc"
    with saying(hints * 100) as url, pytest.raises(TransientError, match="interim"):
        body_of(transport, url)


def test_fields_that_are_repeated_are_joined(transport: HttpTransport) -> None:
    words = (
        b'HTTP/1.1 401 No\r\nWWW-Authenticate: Basic realm="a"\r\nWWW-Authenticate: Bearer\r\nContent-Length: 0\r\n\r\n'
    )
    with saying(words) as url, transport.get(url, {}) as answer:
        assert answer.headers["www-authenticate"] == 'Basic realm="a", Bearer'


def test_no_block_is_longer_than_asked_for() -> None:
    transport = HttpTransport(block_bytes=10)
    with saying(b"HTTP/1.1 200 OK\r\nContent-Length: 25\r\n\r\n" + bytes(25)) as url, transport.get(url, {}) as answer:
        assert [len(block) for block in answer.body] == [10, 10, 5]
    transport.close()


class Counting(http.server.BaseHTTPRequestHandler):
    """Answers ``abc`` and remembers the client's port; closes after each answer where ``hangs_up`` says so."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self.server.ports.append(self.client_address[1])  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("Content-Length", "3")
        self.end_headers()
        self.wfile.write(b"abc")
        if self.server.hangs_up:  # type: ignore[attr-defined]
            self.close_connection = True

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.mark.parametrize(("hangs_up", "connections"), [(False, 1), (True, 3)])
def test_a_connection_is_used_again_and_one_that_was_closed_meanwhile_is_replaced(
    transport: HttpTransport, *, hangs_up: bool, connections: int
) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Counting) as listener:
        listener.ports, listener.hangs_up = [], hangs_up  # type: ignore[attr-defined]
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        for _ in range(3):
            assert body_of(transport, f"http://127.0.0.1:{listener.server_address[1]}/") == b"abc"
        transport.close()
        listener.shutdown()
        thread.join()
        assert len(set(listener.ports)) == connections  # type: ignore[attr-defined]


def test_an_answer_that_was_not_read_to_its_end_leaves_no_connection_for_the_next(transport: HttpTransport) -> None:
    with saying(b"HTTP/1.1 200 OK\r\nContent-Length: 3000\r\n\r\n" + bytes(3000), hangs_up=False) as url:
        with transport.get(url, {}) as answer:
            assert answer.status == 200
        with pytest.raises(TransientError):  # only one connection is answered
            body_of(transport, url)


def test_a_server_that_does_not_speak_tls_is_told_at_once(transport: HttpTransport) -> None:
    with (
        saying(b"HTTP/1.1 400 Bad Request\r\n\r\n") as url,
        pytest.raises(NetworkError, match="does not speak TLS") as caught,
    ):
        body_of(transport, url.replace("http:", "https:"))
    assert not isinstance(caught.value, TransientError)


@pytest.mark.attack
@pytest.mark.parametrize("part", ["a\r\nX: y", "a b", "a\nb", "\x00"])
def test_no_address_can_add_a_field_to_a_request(part: str) -> None:
    server = SimulatedServer(ImageLayout(Path("/nowhere")))
    transport = HttpTransport()
    with serving(server) as url, contextlib.suppress(NetworkError), transport.get(f"{url}/{part}?{part}", {}):
        pass
    transport.close()
    assert all("X" not in request.headers and "\r" not in request.url for request, _ in server.answers)


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


@pytest.fixture(scope="module")
def parrot() -> Iterator[tuple[str, list[bytes]]]:
    """A server that answers every connection with the one text in the list, and hangs up."""
    words: list[bytes] = [b""]

    class Parrot(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                self.request.recv(65536)
                self.request.sendall(words[0])

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Parrot) as listener:
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{listener.server_address[1]}/", words
        listener.shutdown()
        thread.join()


HEADS = st.sampled_from([
    b"HTTP/1.1 200 OK", b"HTTP/1.1 206 Partial", b"HTTP/1.0 200", b"HTTP/9.9 200 OK", b"HTTP/1.1 99999 X",
])  # fmt: skip
FIELDS = st.sampled_from([
    b"Content-Length: 5", b"Content-Length: -5", b"Content-Length: 99999999999999999999", b"Content-Length: x",
    b"Transfer-Encoding: chunked", b"Connection: close", b": empty", b"X" * 70_000, b"\xff\xfe: \x00", b" folded",
])  # fmt: skip
BODIES = st.one_of(
    st.binary(max_size=30),
    st.sampled_from([b"5\r\nhello\r\n0\r\n\r\n", b"-5\r\nhello", b"zz\r\n", b"ffffffffffffffffff\r\nx", b"5" * 70_000]),
)


@pytest.mark.attack
@settings(max_examples=150, deadline=None, derandomize=True)
@given(head=HEADS, fields=st.lists(FIELDS, max_size=4), body=BODIES, cut=st.integers(0, 200) | st.none())
def test_whatever_a_server_says_ends_in_bytes_or_in_an_error_of_the_network(
    parrot: tuple[str, list[bytes]], head: bytes, fields: list[bytes], body: bytes, cut: int | None
) -> None:
    url, words = parrot
    words[0] = (b"\r\n".join([head, *fields, b"", b""]) + body)[:cut]
    transport = HttpTransport(stall_seconds=5)
    with contextlib.suppress(NetworkError):
        assert len(body_of(transport, url)) <= len(words[0])
    transport.close()
