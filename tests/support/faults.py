"""The faults of real lines, proxies and registries, for the fault proxy to commit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from urllib.parse import urlsplit

from fault_proxy import Fault, FaultProxy, Line
from simulated_server import Answer, Request


def latency(seconds: float) -> Fault:
    """Answer late."""

    def fault(_: Request, answer: Answer, line: Line) -> None:
        line.pause(seconds)
        line.send(answer)

    return fault


def in_portions(portion_bytes: int, seconds: float) -> Fault:
    """Send the body at a rate: a portion, a pause, and so on, until the client has it all or leaves."""

    def fault(_: Request, answer: Answer, line: Line) -> None:
        line.head(answer)
        for begin in range(0, len(answer.body), portion_bytes):
            line.body(answer.body[begin : begin + portion_bytes])
            line.pause(seconds)
            if line.client_has_left():
                line.leave()
                return

    return fault


def cut_after(byte_count: int) -> Fault:
    """Break the connection after so many bytes of the body."""

    def fault(_: Request, answer: Answer, line: Line) -> None:
        line.head(answer)
        line.body(answer.body[:byte_count])
        line.reset()

    return fault


def no_answer(_: Request, __: Answer, line: Line) -> None:
    """Break the connection before the status line."""
    line.reset()


def flipped_byte(position: int) -> Fault:
    """Change one bit of the body."""

    def fault(_: Request, answer: Answer, line: Line) -> None:
        body = bytearray(answer.body)
        body[position % len(body)] ^= 0x01
        line.send(replace(answer, body=bytes(body)))

    return fault


def stall_after(byte_count: int) -> Fault:
    """Fall silent after so many bytes of the body, with the connection open."""

    def fault(_: Request, answer: Answer, line: Line) -> None:
        line.head(answer)
        line.body(answer.body[:byte_count])
        line.silence()

    return fault


def silent(_: Request, __: Answer, line: Line) -> None:
    """Take the request and say nothing."""
    line.silence()


def drip(seconds: float) -> Fault:
    """Send one byte at a time, each early enough for a client that only waits for the next byte."""
    return in_portions(1, seconds)


def status(code: int, headers: Mapping[str, str] | None = None) -> Fault:
    """Answer another status, without a body."""
    return lambda _, __, line: line.send(Answer(code, headers or {}))


def web_page(_: Request, __: Answer, line: Line) -> None:
    """Answer 200 with a page, as networks do that want people to log in."""
    line.send(Answer(200, {"Content-Type": "text/html; charset=utf-8"}, b"<html><title>Welcome</title></html>"))


def whole_for_range(proxy: FaultProxy) -> Fault:
    """Answer a request for a range with 200 and all bytes."""

    def fault(request: Request, _: Answer, line: Line) -> None:
        fields = {name: value for name, value in request.headers.items() if name.lower() != "range"}
        line.send(proxy.fetch(Request(request.url, fields)))

    return fault


def short_content_length(missing_bytes: int) -> Fault:
    """Say and send fewer bytes than there are, as a proxy does that truncates."""

    def fault(_: Request, answer: Answer, line: Line) -> None:
        body = answer.body[:-missing_bytes]
        line.send(replace(answer, body=body, headers={**answer.headers, "Content-Length": str(len(body))}))

    return fault


def other_content_range(content_range: str) -> Fault:
    """Label the part that is sent as another one; an empty text leaves the field out."""

    def fault(_: Request, answer: Answer, line: Line) -> None:
        fields = {name: value for name, value in answer.headers.items() if name.lower() != "content-range"}
        line.send(replace(answer, headers=fields | ({"Content-Range": content_range} if content_range else {})))

    return fault


class SignedRedirect:
    """Redirect to another host with a token in the query, as storage behind a registry does; the first tokens expired.

    Args:
        proxy: Serves both: the registry as 127.0.0.1 and the storage as localhost.
        expired: How many tokens are refused with 403.
    """

    def __init__(self, proxy: FaultProxy, *, expired: int) -> None:
        self._proxy, self._expired, self._given = proxy, expired, 0

    def __call__(self, request: Request, answer: Answer, line: Line) -> None:
        parts = urlsplit(request.url)
        if not parts.query:
            self._given += 1
            storage = self._proxy.url.replace("127.0.0.1", "localhost")
            line.send(Answer(307, {"Location": f"{storage}{parts.path}?token={self._given}"}))
        elif int(parts.query.removeprefix("token=")) <= self._expired:
            line.send(Answer(403, {"Content-Type": "application/xml"}, b"<Error><Code>AccessDenied</Code></Error>"))
        else:
            line.send(answer)
