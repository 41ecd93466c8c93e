"""Slow, silent and greedy clients against a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import random
import select
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloud_service.serving.protocol import KEEP_CONNECTION, MAX_DISCARDED_BYTES, ZERO_COPY_SEND

Address = tuple[str, int]
Serve = Callable[..., Address]
CONTENT = bytes(number * 7 % 251 for number in range(1000)) * 3001
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def answer(scope: Any, receive: Any, send: Any) -> None:
    """Answer without reading the body."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


async def read_body(scope: Any, receive: Any, send: Any) -> None:
    while (message := await receive()).get("more_body", False):
        pass
    if message["type"] == "http.request":
        await answer(scope, receive, send)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "blob"
    path.write_bytes(CONTENT)
    return path


def sending(path: Path, spans: list[tuple[int, int]], headers: list[tuple[bytes, bytes]]) -> Any:
    """An application that answers with spans of a file."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert ZERO_COPY_SEND in scope["extensions"]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        with path.open("rb") as file:
            for number, (offset, count) in enumerate(spans):
                span = {"file": file.fileno(), "offset": offset, "count": count}
                await send({"type": ZERO_COPY_SEND, **span, "more_body": number + 1 < len(spans)})

    return app


def connect(address: Address, data: bytes = b"") -> socket.socket:
    client = socket.create_connection(address, timeout=20)
    client.sendall(data)
    return client


def read_all(client: socket.socket) -> bytes:
    """Read until the server closes the connection, in whatever way."""
    received = bytearray()
    try:
        while data := client.recv(1 << 16):
            received += data
    except ConnectionResetError:
        pass
    return bytes(received)


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def body_of(answer: bytes) -> bytes:
    return answer.partition(b"\r\n\r\n")[2]


@pytest.mark.attack
@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ", GET + b"GET /"])
def test_a_head_that_never_ends_is_cut_off(serve: Serve, sent: bytes) -> None:
    with connect(serve(answer, header_timeout_seconds=0.2), sent) as client:
        assert read_all(client).count(b"200 OK") == sent.count(GET)


@pytest.mark.attack
def test_a_body_that_never_ends_is_cut_off(serve: Serve) -> None:
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345"
    with connect(serve(read_body, body_timeout_seconds=0.2), head) as client:
        assert read_all(client) == b""


@pytest.mark.attack
def test_a_body_of_an_answered_request_is_cut_off_too(serve: Serve) -> None:
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000000\r\n\r\n"
    address = serve(answer, body_timeout_seconds=0.2)
    with connect(address, head) as client:
        assert body_of(read_all(client)) == b"ok"
    with connect(address, head) as client, pytest.raises(ConnectionError):
        client.sendall(bytes(100 * MAX_DISCARDED_BYTES))


def test_an_answer_that_takes_its_time_is_not_cut_off(serve: Serve) -> None:
    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.5)
        await answer(scope, receive, send)

    limits = {"header_timeout_seconds": 0.1, "body_timeout_seconds": 0.1, "write_stall_seconds": 0.1}
    with connect(serve(slow, **limits), GET) as client:
        assert body_of(read_all(client)) == b"ok"


@pytest.mark.attack
@pytest.mark.parametrize("is_file", [True, False])
def test_a_reader_that_takes_nothing_is_cut_off(serve: Serve, tmp_path: Path, is_file: bool) -> None:
    size = 64 * 1024 * 1024
    path = tmp_path / "large"
    with path.open("wb") as large:
        large.truncate(size)
    headers = [(b"content-length", str(size).encode())]

    async def from_memory(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": bytes(size)})

    app = sending(path, [(0, size)], headers) if is_file else from_memory
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(serve(app, write_stall_seconds=0.3))
        client.sendall(GET)
        assert client.recv(1) == b"H"
        poll = select.poll()
        poll.register(client, select.POLLRDHUP)
        assert poll.poll(20_000), "the connection was not closed"


@pytest.mark.attack
def test_half_open_connections_leave_room_for_a_request(serve: Serve) -> None:
    address = serve(answer, max_connections=8, max_connections_per_address=0)
    silent = [connect(address, b"GET /") for _ in range(40)]
    with connect(address, GET) as client:
        assert client.recv(15) == b"HTTP/1.1 200 OK"
    for one in silent:
        one.close()


@pytest.mark.attack
def test_clients_that_ask_without_a_key_and_read_nothing_leave_room_for_a_request(serve: Serve) -> None:
    size = 4_000_000

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/":
            await answer(scope, receive, send)
            return
        headers = [(b"content-length", str(size).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": bytes(size)})

    address = serve(app, max_connections=8, max_connections_per_address=0)
    greedy = [connect(address, GET.replace(b"/", b"/large", 1) * 50) for _ in range(8)]
    for one in greedy:
        assert one.recv(15) == b"HTTP/1.1 200 OK"  # the rest is never read
    for _ in range(3):
        with connect(address, GET) as client:
            assert client.recv(15) == b"HTTP/1.1 200 OK"
    for one in greedy:
        one.close()


def test_a_welcome_request_that_is_being_answered_keeps_its_place(serve: Serve) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["extensions"][KEEP_CONNECTION]()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
        while (await receive())["type"] != "http.disconnect":
            pass

    address = serve(app, max_connections=2, max_connections_per_address=0)
    kept = [connect(address, GET) for _ in range(2)]
    for one in kept:
        assert one.recv(15) == b"HTTP/1.1 200 OK"
    with connect(address) as client:
        assert read_all(client) == b""
    for one in kept:
        one.close()


def test_spans_of_a_file_arrive_as_one_body(serve: Serve, file: Path) -> None:
    headers = [(b"content-length", b"2000010")]
    with connect(serve(sending(file, [(1_000_000, 2_000_000), (5, 10)], headers)), GET) as client:
        client.settimeout(20)
        with client.makefile("rb") as stream:
            while stream.readline() != b"\r\n":
                pass
            assert stream.read(2_000_010) == CONTENT[1_000_000:3_000_000] + CONTENT[5:15]
            client.sendall(GET)
            assert stream.readline() == b"HTTP/1.1 200 OK\r\n"


def test_a_file_of_no_declared_length_is_chunked(serve: Serve, file: Path) -> None:
    close = GET.replace(b"Host", b"Connection: close\r\nHost")
    with connect(serve(sending(file, [(0, 1_000_000)], [])), close) as client:
        received = read_all(client)
    assert b"transfer-encoding: chunked" in received.lower()
    assert body_of(received) == b"f4240\r\n" + CONTENT[:1_000_000] + b"\r\n0\r\n\r\n"


def test_head_is_answered_without_the_file(serve: Serve, file: Path) -> None:
    head = b"HEAD / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    app = sending(file, [(0, len(CONTENT))], [(b"content-length", str(len(CONTENT)).encode())])
    with connect(serve(app), head) as client:
        received = read_all(client)
    assert f"content-length: {len(CONTENT)}".encode() in received
    assert body_of(received) == b""


def test_a_file_that_becomes_shorter_ends_the_connection_not_the_server(serve: Serve, file: Path) -> None:
    size = len(CONTENT) + 1000
    address = serve(sending(file, [(0, size)], [(b"content-length", str(size).encode())]))
    with connect(address, GET) as client:
        assert CONTENT.startswith(body_of(read_all(client)))
    with connect(address, GET) as client:
        assert client.recv(15) == b"HTTP/1.1 200 OK"


def test_readers_that_leave_in_the_middle_of_a_file_cost_no_descriptor(serve: Serve, file: Path) -> None:
    address = serve(sending(file, [(0, len(CONTENT))], [(b"content-length", str(len(CONTENT)).encode())]))

    def leave_early() -> None:
        with connect(address, GET) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            assert client.recv(100)

    leave_early()
    with connect(address, GET.replace(b"Host", b"Connection: close\r\nHost")) as client:
        assert body_of(read_all(client)) == CONTENT
    before = open_descriptors()
    for _ in range(20):
        leave_early()
    with connect(address, GET.replace(b"Host", b"Connection: close\r\nHost")) as client:
        assert body_of(read_all(client)) == CONTENT
    assert open_descriptors() < before + 10


def test_several_readers_at_once_get_all_of_a_file_and_those_that_leave_cost_no_descriptor(
    serve: Serve, tmp_path: Path
) -> None:
    path, size = tmp_path / "large", 32 * 1024 * 1024  # more than the kernel takes at once: all are sent at one time
    path.write_bytes(random.Random(0).randbytes(size))
    address = serve(sending(path, [(0, size)], [(b"content-length", str(size).encode())]))
    closing = GET.replace(b"Host", b"Connection: close\r\nHost")

    def read_some_together() -> None:
        with contextlib.ExitStack() as clients:
            readers = [clients.enter_context(connect(address, closing)) for _ in range(8)]
            for reader in readers:
                assert reader.recv(15) == b"HTTP/1.1 200 OK"
            for leaving in readers[::2]:
                leaving.close()
            for staying in readers[1::2]:
                assert body_of(read_all(staying)) == path.read_bytes()

    read_some_together()  # starts the threads, which stay
    before = open_descriptors()
    read_some_together()
    deadline = time.monotonic() + 10
    while open_descriptors() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert open_descriptors() <= before
