"""What a pull does in each fault at each place: one cell is a device, a proxy with a fault, and what must come of it.

    place        the fault strikes
    manifest     the request for the tag
    signature    the request for the artifact beside the bundle
    small        the configuration, which is read whole
    large        the pieces of the largest layer
    resume       the same, in a device that has two of its pieces from a pull that was cut

Whatever happens, in every cell: nothing is visible at any request; every blob in the store has its digest; a failure
has the exit code of the table; afterwards an honest pull succeeds, and asks for no byte that was verified before.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fault_proxy import FOREVER, Fault, FaultProxy, fault_proxy
from faults import (
    SignedRedirect,
    cut_after,
    drip,
    flipped_byte,
    in_portions,
    latency,
    no_answer,
    other_content_range,
    short_content_length,
    silent,
    stall_after,
    status,
    web_page,
    whole_for_range,
)
from pulling_device import Device
from simulated_server import Request, SimulatedServer, is_blob

from device_client.download.pull import PullOptions
from device_client.download.transport import HttpTransport
from shared.bundle.digest import digest_of_file
from shared.bundle.layout import ImageLayout
from shared.bundle.manifest import Descriptor, Manifest, parse_manifest
from shared.bundle.read import read_bundle
from shared.errors import ZoError

PLACES = ("manifest", "signature", "small", "large", "resume")
STALL_SECONDS = 0.15
RETRIES = 2
CHUNK = 4096
OK = 0


@dataclass(frozen=True)
class Row:
    """A fault, how often it strikes, and the exit code at each place; a place where it cannot strike has none."""

    name: str
    make: Callable[[FaultProxy], Fault]
    times: int
    codes: tuple[int | None, ...]


def _row(name: str, make: Callable[[FaultProxy], Fault], *codes: int | None, times: int = 1) -> Row:
    return Row(name, make, times, codes)


def _always(name: str, make: Callable[[FaultProxy], Fault], *codes: int | None) -> Row:
    return Row(name, make, FOREVER, codes)


_NO = None
ROWS = (
    #                                                                         manifest signature small large resume
    _always("latency of 20 ms", lambda _: latency(0.02), OK, OK, OK, OK, OK),
    _always("100 kB a second", lambda _: in_portions(1000, 0.01), OK, OK, OK, OK, OK),
    _row("no answer, once", lambda _: no_answer, OK, OK, OK, OK, OK),
    _always("no answer, ever", lambda _: no_answer, 6, 6, 6, 6, 6),
    _row("cut after 100 bytes, once", lambda _: cut_after(100), OK, OK, OK, OK, OK),
    _always("cut after 100 bytes, each time", lambda _: cut_after(100), 6, 6, 6, OK, OK),
    _always("cut before the first byte, each time", lambda _: cut_after(0), 6, 6, 6, 6, 6),
    _row("flipped byte, once", lambda _: flipped_byte(300), OK, OK, OK, OK, OK),
    _always("flipped byte, each time", lambda _: flipped_byte(300), 5, 5, 5, 5, 5),
    _row("200 for Range, once", whole_for_range, _NO, _NO, _NO, OK, OK),
    _always("200 for Range, each time", whole_for_range, _NO, _NO, _NO, OK, OK),
    _row("416, once", lambda _: status(416), OK, OK, OK, OK, OK),
    _always("416, each time", lambda _: status(416), 6, 6, 6, 6, 6),
    _always("416 with another length", lambda _: status(416, {"Content-Range": "bytes */77"}), 6, 6, 6, 5, 5),
    _row("503, twice", lambda _: status(503), OK, OK, OK, OK, OK, times=2),
    _always("503, each time", lambda _: status(503), 6, 6, 6, 6, 6),
    _row("503 with Retry-After, once", lambda _: status(503, {"Retry-After": "7"}), OK, OK, OK, OK, OK),
    _row("429 with Retry-After, once", lambda _: status(429, {"Retry-After": "7"}), OK, OK, OK, OK, OK),
    _row("503 with Retry-After of a day", lambda _: status(503, {"Retry-After": "86400"}), 6, 6, 6, 6, 6),
    _row("silent, once", lambda _: silent, OK, OK, OK, OK, OK),
    _row("stall after 100 bytes, once", lambda _: stall_after(100), OK, OK, OK, OK, OK),
    _always("stall after 100 bytes, each time", lambda _: stall_after(100), 6, 6, 6, 6, 6),
    _row("slow drip, once", lambda _: drip(0.02), OK, OK, OK, OK, OK),
    _always("slow drip, each time", lambda _: drip(0.02), 6, 6, 6, 6, 6),
    _always("redirect that expired once", lambda proxy: SignedRedirect(proxy, expired=1), OK, OK, OK, OK, OK),
    _always("redirect that is always expired", lambda proxy: SignedRedirect(proxy, expired=FOREVER), 6, 6, 6, 6, 6),
    _row("Content-Length 10 too short, once", lambda _: short_content_length(10), OK, OK, OK, OK, OK),
    _always("Content-Length 10 too short, each time", lambda _: short_content_length(10), 5, 5, 5, 6, 6),
    _row("Content-Range of other bytes, once", lambda _: other_content_range("bytes 5-9/*"), _NO, _NO, _NO, OK, OK),
    _always("Content-Range of other bytes, always", lambda _: other_content_range("bytes 5-9/*"), _NO, _NO, _NO, 6, 6),
    _always("206 without Content-Range, each time", lambda _: other_content_range(""), _NO, _NO, _NO, 6, 6),
    _row("Content-Range of another length", lambda _: other_content_range("bytes 0-9/77"), _NO, _NO, _NO, 5, 5),
    _always("404", lambda _: status(404), 4, 5, 5, 5, 5),
    _always("a web page that wants a login", lambda _: web_page, 6, 6, 6, 6, 6),
)  # fmt: skip

CELLS = [(row, place, code) for row in ROWS for place, code in zip(PLACES, row.codes, strict=True) if code is not None]


@dataclass(frozen=True)
class Outcome:
    """What came of a cell: the exit code, and what was wrong besides, which is nothing in a green one."""

    code: int
    complaints: tuple[str, ...]
    waits: tuple[float, ...]


class FaultTable:
    """Runs cells, each with a device of its own, against one proxy in front of one server.

    Args:
        proxy: Passes on what the server of ``published`` says.
        published: Has ``tiny:latest``, signed.
    """

    def __init__(self, proxy: FaultProxy, published: ImageLayout) -> None:
        self._proxy = proxy
        manifest = published.resolve("tiny:latest")
        self._manifest: Manifest = parse_manifest(published.read_blob(manifest.digest, max_bytes=1 << 20))
        trunk = self._manifest.layer("trunk.safetensors")
        assert trunk is not None
        self._trunk: Descriptor = trunk

    def run(self, row: Row, place: str, home: Path) -> Outcome:
        """Run one cell in an empty folder."""
        transport = HttpTransport(stall_seconds=STALL_SECONDS)
        try:
            return self._run(row, place, Device(home, transport))
        finally:
            transport.close()
            self._proxy.disarm()
            self._proxy.before_answer = lambda _: None

    def _run(self, row: Row, place: str, device: Device) -> Outcome:
        complaints: list[str] = []
        if place == "resume":
            self._proxy.arm(is_blob(self._trunk.digest, begin=2 * CHUNK), status(503), times=FOREVER)
            if (code := self._pull(device)) != 6:
                complaints.append(f"the pull that was to be cut ended with {code}")
            self._proxy.disarm()
        verified = _verified(device, self._trunk)
        if place == "resume" and not verified:
            complaints.append("the pull that was cut kept nothing")

        def nothing_is_visible(_: Request) -> None:
            if device.layout.references():
                complaints.append("something was visible before everything was verified")

        self._proxy.before_answer = nothing_is_visible
        self._proxy.arm(self._strikes(place), row.make(self._proxy), times=row.times)
        device.waits.clear()
        begin = len(self._proxy.requests)
        code, waits = self._pull(device), tuple(device.waits)
        complaints += self._refetched(begin, verified, allows_whole="200 for Range" in row.name or "416" in row.name)
        complaints += self._check(device, is_visible=code == OK)
        self._proxy.disarm()
        kept = _verified(device, self._trunk)
        if not verified <= kept and code != OK:
            complaints.append("verified pieces were lost")
        if code != OK:
            begin = len(self._proxy.requests)
            if (again := self._pull(device)) != OK:
                complaints.append(f"an honest pull afterwards ended with {again}")
            complaints += self._check(device, is_visible=True)
            complaints += self._refetched(begin, kept)
        return Outcome(code, tuple(complaints), waits)

    def _pull(self, device: Device) -> int:
        try:
            device.pull(f"{self._proxy.url}/tiny", options=PullOptions(connections=1), retries=RETRIES)
        except ZoError as error:
            return error.exit_code
        return OK

    def _strikes(self, place: str) -> Callable[[Request], bool]:
        if place in ("large", "resume"):
            return is_blob(self._trunk.digest)
        ending = {"manifest": r"/latest", "signature": r"\.sig", "small": self._manifest.config.digest}[place]
        return lambda request: re.search(f"{ending}$", request.path) is not None

    def _check(self, device: Device, *, is_visible: bool) -> Iterator[str]:
        for path in device.layout.blobs.glob("*"):
            if digest_of_file(path) != f"sha256:{path.name}":
                yield f"the blob {path.name} has other bytes"
        found = device.layout.references().get("tiny:latest")
        if (found is not None) != is_visible:
            yield f"the bundle is {'not ' if is_visible else ''}visible"
        if found is not None:
            read_bundle(device.layout, found.digest)

    def _refetched(self, begin: int, kept: set[int], *, allows_whole: bool = False) -> Iterator[str]:
        for request in self._proxy.requests[begin:]:
            span = request.span
            is_again = not allows_whole if span is None else any(start <= span[0] < start + CHUNK for start in kept)
            if kept and is_again and request.path.endswith(self._trunk.digest):
                yield f"bytes {span} were fetched again"


def _verified(device: Device, blob: Descriptor) -> set[int]:
    """Return where the verified pieces of a blob begin, by the journal or because the blob is complete."""
    if device.layout.has_blob(blob.digest):
        return set(range(0, blob.size, CHUNK))
    journal = device.layout.root / "partial" / f"{blob.digest[7:]}.journal"
    return {int(line.split()[0]) for line in journal.read_text().splitlines()} if journal.exists() else set()


@contextmanager
def fault_table(published: ImageLayout) -> Iterator[FaultTable]:
    """Serve a layout and run a proxy in front of it."""
    with fault_proxy(SimulatedServer(published).answer) as proxy:
        yield FaultTable(proxy, published)
