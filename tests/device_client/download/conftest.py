"""A signed tiny bundle on a simulated server, and a device to pull it with."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from pulling_device import SERVER, Device
from simulated_server import InMemoryTransport, SimulatedServer, sign_reference
from tiny_bundle import TinyBundle

from device_client.download.trusted_bundle import AcceptanceRules
from shared.bundle.layout import ImageLayout
from shared.bundle.manifest import Descriptor, parse_manifest


@pytest.fixture
def published(tiny_bundle: TinyBundle, tmp_path: Path) -> ImageLayout:
    """A copy of the tiny bundle, signed, free to be damaged."""
    shutil.copytree(tiny_bundle.layout.root, tmp_path / "published")
    layout = ImageLayout(tmp_path / "published")
    sign_reference(layout, "tiny:latest")
    return layout


@pytest.fixture
def trunk(published: ImageLayout) -> Descriptor:
    """The layer with the most pieces: five, the last one shorter."""
    manifest = parse_manifest(published.read_blob(published.resolve("tiny:latest").digest, max_bytes=1 << 20))
    layer = manifest.layer("trunk.safetensors")
    assert layer is not None
    assert 4 * 4096 < layer.size < 5 * 4096
    return layer


@pytest.fixture
def server(published: ImageLayout) -> SimulatedServer:
    return SimulatedServer(published)


@pytest.fixture
def device(server: SimulatedServer, tmp_path: Path) -> Device:
    return Device(tmp_path / "home", InMemoryTransport({SERVER: server}))


@pytest.fixture
def allow_unsigned() -> Callable[[AcceptanceRules], AcceptanceRules]:
    return lambda rules: replace(rules, allows_unsigned=True)
