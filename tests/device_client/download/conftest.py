"""A signed tiny bundle on a simulated server, and a device to pull it with."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from simulated_server import InMemoryTransport, SimulatedServer, sign_reference
from tiny_bundle import TinyBundle

from device_client.console import Console
from device_client.download.pull import Pulled, PullOptions, pull
from device_client.download.reference import parse_reference
from device_client.download.registry import Registry
from device_client.download.retry import RetryPolicy
from device_client.download.trusted_bundle import AcceptanceRules
from device_client.download.trusted_keys import TrustedKeys
from shared.bundle.layout import ImageLayout
from shared.bundle.manifest import Descriptor, parse_manifest

SERVER = "http://models.test"


class Device:
    """Pulls ``tiny:latest`` into a fresh home; ``waits`` holds the seconds it would have slept."""

    def __init__(self, home: Path, servers: dict[str, SimulatedServer]) -> None:
        self.home = home
        self.layout = ImageLayout(home / "bundles")
        self.keys = TrustedKeys(home / "trusted_keys.json")
        self.transport = InMemoryTransport(servers)
        self.now = datetime(2030, 1, 1, tzinfo=UTC)
        self.waits: list[float] = []
        self.spoken = io.StringIO()
        self.console = Console(stream=self.spoken, has_color=False)

    def pull(
        self,
        text: str = "tiny",
        *,
        rules: Callable[[AcceptanceRules], AcceptanceRules] = lambda rules: rules,
        options: PullOptions | None = None,
        api_key: str | None = None,
        retries: int = 3,
    ) -> Pulled:
        reference = parse_reference(text, SERVER)
        registry = Registry(
            self.transport, reference.server, api_key=api_key, policy=RetryPolicy(retries=retries),
            sleep=self.waits.append, notify=self.console.warn, wall_clock=lambda: 0.0,
        )  # fmt: skip
        known = AcceptanceRules(
            reference.source, reference.name, reference.tag, self.now, self.keys.pinned(reference.source),
            digest=reference.digest,
        )  # fmt: skip
        return pull(
            reference,
            rules(known),
            registry,
            self.layout,
            self.keys,
            self.console,
            options or PullOptions(connections=2),
        )

    def is_empty(self) -> bool:
        """Whether no bundle is visible and no key pinned."""
        return not self.layout.references() and not self.keys.memory().pins


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
    return Device(tmp_path / "home", {SERVER: server})


@pytest.fixture
def allow_unsigned() -> Callable[[AcceptanceRules], AcceptanceRules]:
    return lambda rules: replace(rules, allows_unsigned=True)
