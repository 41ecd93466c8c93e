"""Keeps what this device remembers of publishers in one small file, ``trusted_keys.json``.

A pin is only ever replaced on demand, or by a key that the pinned one has named. Before zo-device knew statements the
file held pins alone, source → fingerprint; such a file is read as it is and written anew at the next change. Writers
hold the store's lock (``sole_writer``). The file is private to the user, and whole or unchanged after a crash.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import ValidationError

from device_client.download.publisher_memory import PublisherMemory
from shared.durable_files import disk_errors, write_atomically
from shared.errors import InvalidRequest, PublisherChanged, ZoError

_IMPORTED = "import/"
_FINGERPRINT = re.compile(r"ed25519:[0-9a-f]{64}")


class TrustedKeys:
    """The memory in ``path``; the file may be absent."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def memory(self) -> PublisherMemory:
        """Return all that is remembered; a damaged file is an error, never an empty memory.

        Raises:
            ZoError: The file is damaged.
            DiskError: It cannot be read.
        """
        try:
            with disk_errors(self._path):
                data = self._path.read_bytes()
        except FileNotFoundError:
            return PublisherMemory()
        try:
            fields = json.loads(data)
            if isinstance(fields, dict) and "format" not in fields:
                fields = {"pins": fields}
            return PublisherMemory.model_validate(fields)
        except (ValueError, RecursionError, ValidationError) as error:
            raise self._damaged() from error

    def remember(self, memory: PublisherMemory) -> None:
        """Keep a memory on the disk; when this returns, a power cut cannot undo it.

        Raises:
            DiskError: The file cannot be written.
        """
        if memory == self.memory():
            return
        with disk_errors(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_atomically(self._path, memory.to_bytes(), mode=0o600)

    def pinned(self, source: str) -> frozenset[str]:
        """Return the fingerprint pinned for a source, if any."""
        return frozenset(key for known, key in self.memory().pins.items() if known == source)

    def pinned_for_import(self, name: str) -> frozenset[str]:
        """Return the fingerprint that imports of a bundle are pinned to; before the first, those of that very name.

        The name at a server is the whole path of its URL: ``https://host/people/tiny`` is not ``tiny``.
        """
        pins = self.memory().pins
        if (own := pins.get(import_source(name))) is not None:
            return frozenset({own})
        return frozenset(key for known, key in pins.items() if urlsplit(known).path == f"/{name}")

    def pin(self, source: str, fingerprint: str, *, may_replace: bool = False, command: str = "zo-device pull") -> None:
        """Pin a publisher's key for a source.

        Args:
            source: Server and name, or ``import/<name>``.
            fingerprint: The key.
            may_replace: Whether it may take another one's place: the user demanded it, or the other key has named it.
            command: What was typed, for messages.

        Raises:
            PublisherChanged: Another key is pinned, and this one may not replace it.
            DiskError: The file cannot be written.
        """
        memory = self.memory()
        before = memory.pins.get(source, fingerprint)
        if before != fingerprint and not may_replace:
            raise PublisherChanged(
                f"{source} is signed by {fingerprint}",
                needed=f"a signature by {before}",
                next_step=f"ask the publisher; if the new key is right: {command} --trusted-key {fingerprint}",
            )
        self.remember(memory.model_copy(update={"pins": {**memory.pins, source: fingerprint}}))

    def _damaged(self) -> ZoError:
        return ZoError(
            f"{self._path} is damaged",
            needed="the JSON document that zo-device keeps of publishers' keys",
            next_step="compare it with a backup, or remove it to pin all publishers again at their next contact",
        )


def import_source(name: str) -> str:
    """Return what the publisher of an imported bundle is pinned for."""
    return f"{_IMPORTED}{name}"


def check_fingerprint(text: str) -> str:
    """Return a key fingerprint unchanged.

    Raises:
        InvalidRequest: It is not ``ed25519:`` and 64 lower-case hexadecimal digits.
    """
    if not _FINGERPRINT.fullmatch(text):
        raise InvalidRequest(f"trusted key {text!r}", needed="ed25519: followed by 64 lower-case hex digits")
    return text
