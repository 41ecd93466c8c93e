"""A stored file as a response, whole or one range of it, sent by the kernel where the connection allows.

Where the server offers ``http.response.zerocopysend`` (an extension of ASGI, see ``serving.protocol``), sending is the
server's work; under any other the file is read in pieces. It is opened before the head is sent, so it may be deleted
meanwhile. Knows nothing about bundles.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path

import anyio.to_thread
from fastapi import Response
from starlette.types import Receive, Scope, Send

from cloud_service.serving.protocol import ZERO_COPY_SEND
from shared.errors import NotFound

PIECE_BYTES = 1024 * 1024


class BlobResponse(Response):
    """A file, or the span of it that a Range header asked for.

    Args:
        path: The file; it must not change while it is sent.
        size: Its bytes.
        headers: Further headers, ETag among them.
        media_type: Of the file.
        span: First byte and the one after the last; None is the whole file.
    """

    def __init__(
        self,
        path: Path,
        size: int,
        *,
        headers: Mapping[str, str],
        media_type: str,
        span: tuple[int, int] | None = None,
    ) -> None:
        first, end = (0, size) if span is None else span
        own = {"Accept-Ranges": "bytes", "Content-Length": str(end - first)}
        if span is not None:
            own["Content-Range"] = f"bytes {first}-{end - 1}/{size}"
        self.path = path
        self.status_code = HTTPStatus.OK if span is None else HTTPStatus.PARTIAL_CONTENT
        self.media_type = media_type
        self.background = None
        self.init_headers({**headers, **own})
        self._first, self._end = first, end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - the shape of ASGI
        """Send the response.

        Raises:
            NotFound: The file was deleted since it was looked up.
        """
        try:
            file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise NotFound(f"{self.path.name} was deleted", next_step="look for a newer one") from error
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            if scope["method"] == "HEAD" or self._first == self._end:
                await send({"type": "http.response.body", "body": b""})
            elif ZERO_COPY_SEND in scope.get("extensions", {}):
                count = self._end - self._first
                await send({"type": ZERO_COPY_SEND, "file": file, "offset": self._first, "count": count})
            else:
                await self._send_pieces(file, send)
        finally:
            os.close(file)

    async def _send_pieces(self, file: int, send: Send) -> None:
        position = self._first
        while position < self._end:
            count = min(PIECE_BYTES, self._end - position)
            piece = await anyio.to_thread.run_sync(os.pread, file, count, position)
            if not piece:
                raise EOFError(f"{self.path} became shorter while it was sent")
            position += len(piece)
            await send({"type": "http.response.body", "body": piece, "more_body": position < self._end})
