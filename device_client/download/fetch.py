"""Fetches the missing pieces of several blobs over several connections, each piece verified as it arrives.

A piece is hashed while its bytes are written. A connection that breaks within a piece is taken up at the byte where it
broke; a piece whose digest is wrong is fetched again, alone. A server that ignores Range is read once from the start,
and every missing piece is taken from that one body. Knows nothing about trust.
"""

from __future__ import annotations

import hashlib
import queue
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from device_client.download.partial import PartialBlob, Piece
from device_client.download.rate_limit import RateLimit
from device_client.download.registry import MAX_DAMAGED, Registry, missing
from device_client.download.retry import TransientError
from shared.bundle.layout import ImageLayout
from shared.errors import BlobTruncated, DigestMismatch, NotFound

if TYPE_CHECKING:
    from device_client.download.transport import Response

_CONTENT_RANGE = re.compile(r"bytes (?:(\d{1,18})-(\d{1,18})|\*)/(\d{1,18}|\*)")
_JOIN_SECONDS = 2.0


class Stopped(Exception):
    """The download was stopped from outside this thread."""


class _RangeIgnored(Exception):
    """The server answers with the whole blob."""


@dataclass(slots=True)
class _Arriving:
    """A piece of which the bytes [begin, position) have arrived."""

    piece: Piece
    position: int = field(init=False)
    hasher: hashlib._Hash = field(init=False)

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.position, self.hasher = self.piece.begin, hashlib.sha256()

    @property
    def is_intact(self) -> bool:
        return f"sha256:{self.hasher.hexdigest()}" == self.piece.digest


class Fetch:
    """The fetching of blobs of one bundle.

    Args:
        registry: The server.
        name: The bundle's name there.
        layout: The store that complete blobs are moved into.
        rate_limit: The pace of all connections together.
        on_bytes: Told how many bytes arrived; negative when they turned out damaged.
        notify: Told what a person should know.
        stop: Set from outside to end the download.

    Attributes:
        received_bytes: Bytes that came over the network, useful or not.
    """

    def __init__(
        self,
        registry: Registry,
        name: str,
        layout: ImageLayout,
        *,
        rate_limit: RateLimit,
        on_bytes: Callable[[int], None] = lambda _: None,
        notify: Callable[[str], None] = lambda _: None,
        stop: threading.Event | None = None,
    ) -> None:
        self._registry, self._name, self._layout = registry, name, layout
        self._rate_limit, self._on_bytes, self._notify = rate_limit, on_bytes, notify
        self._stop = stop or threading.Event()
        self._damaged: Counter[Piece] = Counter()
        self._lock = threading.Lock()
        self.received_bytes = 0

    def all(self, partials: Iterable[PartialBlob], *, connections: int) -> None:
        """Fetch everything that is missing and move each blob into the store when it is complete.

        Raises:
            NetworkError: The server or the line failed for too long; what was fetched is kept.
            IntegrityError: The server has other bytes than the manifest names.
            DiskError: The disk is full or not writable.
        """
        work: queue.SimpleQueue[tuple[PartialBlob, Piece]] = queue.SimpleQueue()
        outcomes: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
        for partial in partials:
            for piece in partial.missing:
                work.put((partial, piece))
            if not partial.missing:
                partial.finish(self._layout)
        threads = [
            threading.Thread(target=self._work, args=(work, outcomes), daemon=True)
            for _ in range(min(connections, work.qsize()))
        ]
        try:
            for thread in threads:
                thread.start()
            for _ in threads:
                if (error := outcomes.get()) is not None:
                    raise error
        finally:
            self._stop.set()
            deadline = time.monotonic() + _JOIN_SECONDS
            for thread in threads:
                thread.join(max(0.0, deadline - time.monotonic()))

    def _work(
        self, work: queue.SimpleQueue[tuple[PartialBlob, Piece]], outcomes: queue.SimpleQueue[Exception | None]
    ) -> None:
        try:
            while not self._stop.is_set():
                self._fetch(*work.get_nowait())
        except (queue.Empty, Stopped):
            outcomes.put(None)
        except Exception as error:
            outcomes.put(error)
        else:
            outcomes.put(None)

    def _fetch(self, partial: PartialBlob, piece: Piece) -> None:
        arriving, attempts = _Arriving(piece), self._registry.attempts()
        while piece in partial.missing:
            before = arriving.position
            try:
                self._receive(partial, arriving)
                self._settle(partial, arriving)
            except _RangeIgnored:
                self._fetch_whole(partial)
            except TransientError as error:
                attempts.wait_after(error, gained_bytes=arriving.position - before)

    def _receive(self, partial: PartialBlob, arriving: _Arriving) -> None:
        """Receive the rest of a piece."""
        piece, size = arriving.piece, partial.blob.size
        headers = {"Range": f"bytes={arriving.position}-{piece.end - 1}"}
        with self._open(partial, headers) as answer:
            _check_length(answer, partial)
            if answer.status != 206 and not (answer.status == 200 and (arriving.position, piece.end) == (0, size)):
                raise _RangeIgnored
            if answer.status == 206:
                _check_begin(answer, arriving.position)
            for data in self._blocks(answer):
                self._take(partial, arriving, data[: piece.end - arriving.position])
                if arriving.position == piece.end:
                    return
        raise TransientError(f"the connection ended {piece.end - arriving.position} bytes too early")

    def _fetch_whole(self, partial: PartialBlob) -> None:
        """Take all missing pieces from one body; the first connection does it, the others wait for it."""
        partial.distrust_memory()
        with partial.whole_lock:
            attempts = self._registry.attempts()
            while wanted := partial.missing:
                try:
                    self._receive_whole(partial)
                except TransientError as error:
                    gained = sum(piece.size for piece in wanted) - sum(piece.size for piece in partial.missing)
                    attempts.wait_after(error, gained_bytes=gained)

    def _receive_whole(self, partial: PartialBlob) -> None:
        with self._open(partial, {}) as answer:
            _check_length(answer, partial)
            if answer.status != 200:
                raise TransientError(f"status {answer.status} to a request for the whole blob")
            wanted, rest, blocks = set(partial.missing), b"", self._blocks(answer)
            for piece in partial.pieces:
                arriving = _Arriving(piece)
                while arriving.position < piece.end:
                    rest = rest or next(blocks, b"")
                    if not rest:
                        raise TransientError(f"the connection ended at byte {arriving.position}")
                    taken, rest = rest[: piece.end - arriving.position], rest[piece.end - arriving.position :]
                    if piece in wanted:
                        self._take(partial, arriving, taken)
                    else:
                        arriving.position += len(taken)
                if piece in wanted:
                    self._settle(partial, arriving)

    @contextmanager
    def _open(self, partial: PartialBlob, headers: Mapping[str, str]) -> Iterator[Response]:
        if self._stop.is_set():
            raise Stopped
        try:
            with self._registry.open(self._registry.blob_url(self._name, partial.blob.digest), headers) as answer:
                yield answer
        except NotFound as error:
            raise missing(partial.blob) from error

    def _blocks(self, answer: Response) -> Iterator[bytes]:
        for data in answer.body:
            with self._lock:
                self.received_bytes += len(data)
            self._rate_limit.take(len(data))
            if self._stop.is_set():
                raise Stopped
            yield data

    def _take(self, partial: PartialBlob, arriving: _Arriving, data: bytes) -> None:
        partial.write(arriving.piece, data, arriving.position)
        arriving.hasher.update(data)
        arriving.position += len(data)
        self._on_bytes(len(data))

    def _settle(self, partial: PartialBlob, arriving: _Arriving) -> None:
        """Record a piece that arrived whole, or begin it again where it arrived damaged."""
        piece, title = arriving.piece, partial.blob.title
        if arriving.is_intact:
            if partial.complete(piece, arriving.hasher):
                partial.finish(self._layout)
            return
        arriving.restart()
        self._on_bytes(-piece.size)
        self._damaged[piece] += 1
        if self._damaged[piece] >= MAX_DAMAGED:
            raise DigestMismatch(
                f"bytes {piece.begin}-{piece.end} of {title} came with another digest {MAX_DAMAGED} times",
                needed=piece.digest,
                next_step="run the same command again; if it stays so, the server's copy is damaged: tell its operator",
            )
        self._notify(f"bytes {piece.begin}-{piece.end} of {title} arrived damaged; fetching them again")


def _check_length(answer: Response, partial: PartialBlob) -> None:
    """Refuse a blob whose length on the server is not the manifest's."""
    match = _CONTENT_RANGE.fullmatch(answer.headers.get("content-range", ""))
    length = answer.headers.get("content-length", "") if answer.status == 200 else match[3] if match else ""
    if length.isdigit() and int(length) != partial.blob.size:
        raise BlobTruncated(
            f"{partial.blob.title} has {int(length)} bytes on the server",
            needed=f"{partial.blob.size} bytes",
            next_step="run the same command again; if it stays so, the server's copy is damaged: tell its operator",
        )


def _check_begin(answer: Response, begin: int) -> None:
    match = _CONTENT_RANGE.fullmatch(answer.headers.get("content-range", ""))
    if match is None or match[1] is None or int(match[1]) != begin:
        raise TransientError(f"asked for bytes from {begin}, got {answer.headers.get('content-range', '')[:80]!r}")
