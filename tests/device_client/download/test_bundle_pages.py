"""The server's list of bundles, which comes in pages."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from simulated_server import SimulatedServer

from device_client.download.registry import Registry
from device_client.download.retry import RetryPolicy
from device_client.download.transport import Response
from shared.api import BundleSummary
from shared.errors import NetworkError

SERVER = "http://models.test"


def summary(number: int) -> BundleSummary:
    return BundleSummary(
        name=f"m{number:05d}", tag="latest", digest="d", size_bytes=1, base_model="m", parameter_count=1,
        sensitive_count=1,
    )  # fmt: skip


class PagedServer:
    """Lists ``count`` bundles in pages of ``page`` at most; with ``repeats`` every page is the first, for ever."""

    def __init__(self, count: int, page: int = 200, *, repeats: bool = False) -> None:
        self.count, self.page, self.repeats, self.requests = count, page, repeats, 0

    @contextmanager
    def get(self, url: str, headers: Mapping[str, str]) -> Iterator[Response]:
        self.requests += 1
        query = parse_qs(urlsplit(url).query)
        after = query.get("after", ["m-1:latest"])[0]
        begin = 0 if self.repeats else int(after[1:].partition(":")[0]) + 1
        end = min(begin + min(self.page, int(query["limit"][0])), self.count)
        listed = [summary(number).model_dump() for number in range(begin, end)]
        following = f"m{end - 1:05d}:latest" if end < self.count else None
        body = json.dumps({"bundles": listed, "next": following}).encode()
        yield Response(200, {"content-type": "application/json"}, iter([body]))


def registry_of(server: PagedServer) -> Registry:
    return Registry(server, SERVER, policy=RetryPolicy(retries=0))


@pytest.mark.parametrize(("count", "pages"), [(0, 1), (1, 1), (200, 1), (201, 2), (1000, 5)])
def test_all_pages_are_followed(count: int, pages: int) -> None:
    server = PagedServer(count)
    listed = registry_of(server).bundles()
    assert [bundle.name for bundle in listed.bundles] == [f"m{number:05d}" for number in range(count)]
    assert listed.next is None
    assert server.requests == pages


def test_a_list_ends_at_its_bound_and_says_that_there_is_more() -> None:
    server = PagedServer(10**6)
    listed = registry_of(server).bundles(at_most=20)
    assert (len(listed.bundles), server.requests) == (200, 1)
    assert listed.next is not None
    assert len(registry_of(server).bundles().bundles) == 10_000


@pytest.mark.attack
def test_a_server_whose_pages_never_end_is_refused() -> None:
    server = PagedServer(10**6, repeats=True)
    with pytest.raises(NetworkError, match="repeats a page"):
        registry_of(server).bundles()
    assert server.requests == 2


@pytest.mark.attack
def test_a_server_whose_pages_are_empty_and_have_a_next_is_refused() -> None:
    server = PagedServer(10**6, page=0)
    with pytest.raises(NetworkError, match="repeats a page"):
        registry_of(server).bundles()


def test_a_list_of_a_server_that_knows_no_pages_is_whole(tmp_path: Path, published: object, device: object) -> None:
    server = SimulatedServer(published)  # type: ignore[arg-type]
    transport = type(device.transport)({SERVER: server})  # type: ignore[attr-defined]
    listed = Registry(transport, SERVER).bundles()
    assert [f"{bundle.name}:{bundle.tag}" for bundle in listed.bundles] == ["tiny:latest"]
    assert listed.next is None
