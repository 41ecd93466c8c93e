"""The content of a tag changes while it is pulled: between the manifest and the blobs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_proxy import FaultProxy, Line, fault_proxy, fetched_from
from pulling_device import Device
from simulated_server import Answer, Request, SimulatedServer, serving, sign_reference
from tiny_bundle import make_tiny_bundle

from device_client.download.transport import HttpTransport
from shared.bundle.layout import ImageLayout
from shared.bundle.read import read_bundle
from shared.errors import BlobMissing


@pytest.fixture
def proxy(published: ImageLayout) -> Iterator[FaultProxy]:
    """The tag names another bundle as soon as its manifest was read."""
    make_tiny_bundle(published.root, reference="tiny:next", seed=1)
    with serving(SimulatedServer(published)) as upstream, fault_proxy(fetched_from(upstream)) as proxy:

        def moves(_: Request, answer: Answer, line: Line) -> None:
            published.tag("tiny:latest", published.resolve("tiny:next"))
            sign_reference(published, "tiny:latest", version=2)
            line.send(answer)

        proxy.arm(lambda request: request.path.endswith("/latest"), moves)
        yield proxy


@pytest.fixture
def real_device(tmp_path: Path) -> Iterator[Device]:
    transport = HttpTransport()
    yield Device(tmp_path / "home", transport)
    transport.close()


def test_the_bundle_of_the_first_manifest_is_pulled_whole_and_the_next_pull_takes_the_other(
    proxy: FaultProxy, published: ImageLayout, real_device: Device
) -> None:
    before = published.resolve("tiny:latest").digest
    assert real_device.pull(f"{proxy.url}/tiny").digest == before
    read_bundle(real_device.layout, before)
    after = published.resolve("tiny:next").digest
    assert real_device.pull(f"{proxy.url}/tiny").digest == after
    read_bundle(real_device.layout, after)


def test_where_the_old_blobs_are_gone_nothing_is_visible_and_the_next_pull_takes_the_other(
    proxy: FaultProxy, published: ImageLayout, real_device: Device
) -> None:
    kept = {blob.digest for blob in read_bundle(published, published.resolve("tiny:next").digest).manifest.blobs}
    for blob in read_bundle(published, published.resolve("tiny:latest").digest).manifest.layers:
        if blob.digest not in kept:
            published.blob_path(blob.digest).unlink()
    with pytest.raises(BlobMissing, match="what the tag names may have changed"):
        real_device.pull(f"{proxy.url}/tiny")
    assert real_device.is_empty()
    assert real_device.pull(f"{proxy.url}/tiny").digest == published.resolve("tiny:next").digest
