"""The publishers' keys that this device has pinned: one small file, source → fingerprint.

A source is server and name; what came from a folder has the source ``import/<name>``. A pin is only ever replaced on
demand. Writers hold the store's lock (``sole_writer``). The file is private to the user.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import urlsplit

from shared.durable_files import disk_errors, write_atomically
from shared.errors import InvalidRequest, PublisherChanged, ZoError

_IMPORTED = "import/"
_FINGERPRINT = re.compile(r"ed25519:[0-9a-f]{64}")


class TrustedKeys:
    """The pins in ``path``; the file may be absent."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def pinned(self, source: str) -> frozenset[str]:
        """Return the fingerprint pinned for a source, if any."""
        return frozenset(key for known, key in self._read().items() if known == source)

    def pinned_for_import(self, name: str) -> frozenset[str]:
        """Return the fingerprint that imports of a bundle are pinned to; before the first, those of that very name.

        The name at a server is the whole path of its URL: ``https://host/people/tiny`` is no ``tiny``.
        """
        pins = self._read()
        if (own := pins.get(import_source(name))) is not None:
            return frozenset({own})
        return frozenset(key for known, key in pins.items() if urlsplit(known).path == f"/{name}")

    def pin(self, source: str, fingerprint: str, *, is_demanded: bool = False) -> None:
        """Pin a publisher's key for a source.

        Args:
            source: Server and name, or ``import/<name>``.
            fingerprint: The key.
            is_demanded: Whether the user named this very key, so that it may replace another one.

        Raises:
            PublisherChanged: Another key is pinned, and this one was not demanded.
            DiskError: The file cannot be written.
        """
        pins = self._read()
        before = pins.get(source, fingerprint)
        if source in pins and before == fingerprint:
            return
        if before != fingerprint and not is_demanded:
            raise PublisherChanged(
                f"{source} is signed by {fingerprint}",
                needed=f"a signature by {before}",
                next_step=f"ask the publisher; if the new key is right, repeat with --trusted-key {fingerprint}",
            )
        data = json.dumps({**pins, source: fingerprint}, indent=1, sort_keys=True).encode()
        with disk_errors(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_atomically(self._path, data, mode=0o600)

    def _read(self) -> dict[str, str]:
        """Return all pins; a damaged file is an error, never an empty set of pins."""
        try:
            with disk_errors(self._path):
                pins = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise self._damaged() from error
        if not isinstance(pins, dict) or not all(isinstance(key, str) for key in pins.values()):
            raise self._damaged()
        return pins

    def _damaged(self) -> ZoError:
        return ZoError(
            f"{self._path} is damaged",
            needed="a JSON object of source and fingerprint",
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
