"""A device that pulls in this process, over whichever transport; it never really waits."""

from __future__ import annotations

import io
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from device_client.console import Console
from device_client.download.authentication import Access
from device_client.download.docker_login import Login
from device_client.download.pull import Pulled, PullOptions, pull
from device_client.download.reference import parse_reference
from device_client.download.registry import Registry
from device_client.download.retry import RetryPolicy
from device_client.download.transport import Transport
from device_client.download.trusted_bundle import AcceptanceRules
from device_client.download.trusted_keys import TrustedKeys
from shared.bundle.layout import ImageLayout

SERVER = "http://models.test"


class Device:
    """Pulls ``tiny:latest`` into a fresh home; ``waits`` holds the seconds it would have slept."""

    def __init__(self, home: Path, transport: Transport) -> None:
        self.home = home
        self.layout = ImageLayout(home / "bundles")
        self.keys = TrustedKeys(home / "trusted_keys.json")
        self.transport = transport
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
        login: Login | None = None,
        published_as: str | None = None,
        retries: int = 3,
    ) -> Pulled:
        reference = parse_reference(text, SERVER)
        signed = parse_reference(published_as, None) if published_as else reference
        registry = Registry(
            self.transport,
            reference.server,
            access=Access(self.transport, reference.server, api_key=api_key, find_login=lambda: login),
            policy=RetryPolicy(retries=retries),
            sleep=self.waits.append,
            notify=self.console.warn,
            wall_clock=lambda: 0.0,
        )
        known = AcceptanceRules(
            reference.source,
            signed.name,
            signed.tag,
            self.now,
            self.keys.pinned(reference.source),
            digest=reference.digest,
        )
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
