"""A whole bundle server in memory, which misbehaves as told; spoken to directly, or over real HTTP on 127.0.0.1.

A fault is a condition on the request, a change of the answer, and how many times it strikes. Every request is kept, so
that tests can count bytes and look at headers.
"""

from __future__ import annotations

import re
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from device_client.download.retry import TransientError
from device_client.download.transport import Response
from shared.api import BundleList, BundleSummary
from shared.bundle.layout import ImageLayout
from shared.bundle.signature import fingerprint_of, publish_signature, sign, signature_tag
from shared.bundle.signature_artifact import (
    Statements,
    documents_beside,
    publish_statements,
    verified_statements,
)
from shared.bundle.statement import SignedRotation, sign_release
from shared.errors import InvalidDigest, NotFound

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
BLOCK_BYTES = 1000


FAR_FUTURE = datetime(2999, 1, 1, tzinfo=UTC)


def fingerprint(key: Ed25519PrivateKey) -> str:
    return fingerprint_of(key.public_key().public_bytes_raw())


def sign_reference(
    layout: ImageLayout,
    reference: str,
    key: Ed25519PrivateKey = KEY,
    *,
    version: int = 1,
    expires: datetime = FAR_FUTURE,
    signed_as: str | None = None,
    rotations: tuple[SignedRotation, ...] = (),
) -> str:
    """State what a reference names, publish the statement beside it, and return the key's fingerprint."""
    manifest = layout.resolve(reference)
    repository = reference.rpartition(":")[0]
    name, _, tag = (signed_as or reference).rpartition(":")
    release = sign_release(key, name=name, tag=tag, version=version, digest=manifest.digest, expires=expires)
    known = verified_statements(documents_beside(layout, repository, manifest.digest))
    statements = known.joined(Statements((release,), rotations))
    layout.tag(f"{repository}:{signature_tag(manifest.digest)}", publish_statements(layout, manifest, statements))
    return release.statement.publisher


def sign_the_old_way(layout: ImageLayout, reference: str, key: Ed25519PrivateKey = KEY) -> None:
    """Publish a signature over the digest alone, as publishers made it before there were statements."""
    manifest = layout.resolve(reference)
    artifact = publish_signature(layout, manifest, sign(key, manifest.digest))
    layout.tag(f"{reference.rpartition(':')[0]}:{signature_tag(manifest.digest)}", artifact)


@dataclass(frozen=True)
class Request:
    url: str
    headers: Mapping[str, str]

    @property
    def path(self) -> str:
        return urlsplit(self.url).path

    @property
    def is_for_blob(self) -> bool:
        return "/blobs/" in self.path

    @property
    def span(self) -> tuple[int, int] | None:
        """First and last byte of the Range field."""
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", self.headers.get("range", "")))
        return (int(match[1]), int(match[2])) if match else None


@dataclass(frozen=True)
class Answer:
    """``breaks_after``: the connection dies after so many bytes of the body."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    breaks_after: int | None = None


@dataclass
class Fault:
    strikes: Callable[[Request], bool]
    change: Callable[[Request, Answer], Answer]
    times: int


class SimulatedServer:
    """Serves an image layout. ``answers`` holds every request with what was answered."""

    def __init__(self, layout: ImageLayout, *, ignores_range: bool = False, api_key: str | None = None) -> None:
        self.layout, self.ignores_range, self.api_key = layout, ignores_range, api_key
        self.faults: list[Fault] = []
        self.answers: list[tuple[Request, Answer]] = []
        self._lock = threading.Lock()

    def misbehave(
        self, strikes: Callable[[Request], bool], change: Callable[[Request, Answer], Answer], *, times: int = 1
    ) -> None:
        self.faults.append(Fault(strikes, change, times))

    def answer(self, request: Request) -> Answer:
        answer = self._honest(request)
        for fault in self.faults:
            with self._lock:
                strikes = fault.times > 0 and fault.strikes(request)
                fault.times -= strikes
            if strikes:
                answer = fault.change(request, answer)
                break
        with self._lock:
            self.answers.append((request, answer))
        return answer

    def layer_bytes_sent(self) -> int:
        """Bytes of blobs that were sent for Range requests: the layers, not the documents."""
        return sum(
            len(answer.body) if answer.breaks_after is None else answer.breaks_after
            for request, answer in self.answers
            if request.is_for_blob and request.span and answer.status in (200, 206)
        )

    def _honest(self, request: Request) -> Answer:
        if self.api_key and request.headers.get("Authorization") != f"Bearer {self.api_key}":
            return Answer(401, {"Content-Type": "application/problem+json"}, b"")
        if request.path == "/v1/bundles":
            return self._whole(self._listing())
        match = re.fullmatch(r"/v2/(.+)/(manifests|blobs)/([^/]+)", request.path)
        if match is None:
            return Answer(404)
        name, kind, reference = match.groups()
        try:
            digest = reference
            if kind == "manifests" and not reference.startswith("sha256:"):
                digest = self.layout.resolve(f"{name}:{reference}").digest
            data = self.layout.blob_path(digest).read_bytes()
        except (NotFound, InvalidDigest, FileNotFoundError):
            return Answer(404)
        if kind == "manifests":
            return replace(self._whole(data), headers={"Docker-Content-Digest": digest})
        if request.span is None or self.ignores_range:
            return self._whole(data)
        begin, last = request.span
        if begin >= len(data):
            return Answer(416, {"Content-Range": f"bytes */{len(data)}"})
        part = data[begin : last + 1]
        content_range = f"bytes {begin}-{begin + len(part) - 1}/{len(data)}"
        return Answer(206, {"Content-Range": content_range, "Content-Length": str(len(part))}, part)

    def _whole(self, data: bytes) -> Answer:
        return Answer(200, {"Content-Length": str(len(data))}, data)

    def _listing(self) -> bytes:
        bundles = [
            BundleSummary(
                name=reference.rpartition(":")[0], tag=reference.rpartition(":")[2], digest=manifest.digest,
                size_bytes=1, base_model="tests/tiny", parameter_count=1, sensitive_count=1,
            )
            for reference, manifest in self.layout.references().items()
            if not reference.endswith(".sig")
        ]  # fmt: skip
        return BundleList(bundles=bundles).model_dump_json().encode()


def is_blob(digest: str, *, begin: int | None = None) -> Callable[[Request], bool]:
    """A request for that blob; with ``begin``, one whose range starts there."""

    def strikes(request: Request) -> bool:
        span = request.span
        return request.path.endswith(digest) and (begin is None or (span is not None and span[0] == begin))

    return strikes


def flip_byte(position: int) -> Callable[[Request, Answer], Answer]:
    """Change one byte of the body."""

    def change(request: Request, answer: Answer) -> Answer:
        body = bytearray(answer.body)
        body[position] ^= 0xFF
        return replace(answer, body=bytes(body))

    return change


def break_after(byte_count: int) -> Callable[[Request, Answer], Answer]:
    """Let the connection die within the body."""
    return lambda _, answer: replace(answer, breaks_after=byte_count)


def instead(answer: Answer) -> Callable[[Request, Answer], Answer]:
    """Answer something else."""
    return lambda *_: answer


class InMemoryTransport:
    """The transport port over simulated servers, by origin. Counts how often anything was asked."""

    def __init__(self, servers: Mapping[str, SimulatedServer]) -> None:
        self._servers = dict(servers)

    @contextmanager
    def get(self, url: str, headers: Mapping[str, str]) -> Iterator[Response]:
        parts = urlsplit(url)
        server = self._servers.get(f"{parts.scheme}://{parts.netloc}")
        if server is None:
            raise TransientError(f"{parts.netloc}: connection refused")
        answer = server.answer(Request(url, dict(headers)))
        fields = {name.lower(): value for name, value in answer.headers.items()}
        yield Response(answer.status, fields, _body(answer))


def _body(answer: Answer) -> Iterator[bytes]:
    end = len(answer.body) if answer.breaks_after is None else answer.breaks_after
    for begin in range(0, end, BLOCK_BYTES):
        yield answer.body[begin : min(begin + BLOCK_BYTES, end)]
    if answer.breaks_after is not None:
        raise TransientError("the connection broke")


@contextmanager
def serving(server: SimulatedServer, *, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """Speak real HTTP on 127.0.0.1, also as a proxy for any host, and give the base URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            origin = "" if self.path.startswith("http://") else f"http://{self.headers['Host']}"
            answer = server.answer(Request(origin + self.path, dict(self.headers.items())))
            self.send_response(answer.status)
            for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            try:
                self.wfile.write(answer.body[: answer.breaks_after])
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True
            if answer.breaks_after is not None:
                self.close_connection = True

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listener.daemon_threads = True
    if tls is not None:
        listener.socket = tls.wrap_socket(listener.socket, server_side=True)
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{listener.server_address[1]}"
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join()
