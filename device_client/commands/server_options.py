"""The options of commands that talk to a server, and the connection they describe."""

from __future__ import annotations

import argparse
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from device_client.console import Console
from device_client.download.registry import Registry
from device_client.download.retry import RetryPolicy
from device_client.settings import Settings
from shared.errors import InvalidRequest


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """Declare which server, with which key, and how patiently."""
    parser.add_argument("--server", metavar="URL", help="server for names (default: ZO_DEVICE_SERVER)")
    parser.add_argument("--api-key-file", type=Path, metavar="FILE", help="file with the key (or ZO_DEVICE_API_KEY)")
    parser.add_argument("--retries", type=int, default=5, metavar="N", help="attempts in vain (default: 5)")


@contextmanager
def connect(
    arguments: argparse.Namespace,
    server: str,
    console: Console,
    settings: Settings,
    *,
    stop: threading.Event,
    connections: int = 1,
) -> Iterator[Registry]:
    """Open no connection yet, but everything that one needs; close what was opened at the end.

    Args:
        arguments: Parsed ``add_server_options``.
        server: Base URL.
        console: Told why something is tried again.
        settings: The key, where no file is given.
        stop: Ends waiting when set.
        connections: Connections at once.

    Raises:
        InvalidRequest: An option or the key is unusable.
    """
    from device_client.download.transport import HttpxTransport  # httpx takes as long to import as all the rest

    if arguments.retries < 0:
        raise InvalidRequest(f"--retries {arguments.retries}", needed="0 or more", param="retries")
    api_key = read_api_key(arguments.api_key_file, settings)
    if api_key and urlsplit(server).scheme == "http" and not _is_loopback(server):
        console.warn(f"the API key goes to {urlsplit(server).hostname} unencrypted; use https")
    transport = HttpxTransport(connections=connections)
    try:
        yield Registry(
            transport,
            server,
            api_key=api_key,
            policy=RetryPolicy(retries=arguments.retries),
            sleep=lambda seconds: _wait(stop, seconds),
            notify=console.warn,
        )
    finally:
        transport.close()


def read_api_key(file: Path | None, settings: Settings) -> str | None:
    """Return the key from a file, else from the environment, else None.

    Raises:
        InvalidRequest: The file cannot be read, or holds no key.
    """
    key = settings.api_key
    if file is not None:
        try:
            key = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeError) as error:
            raise InvalidRequest(f"--api-key-file {file}: {error}", param="api-key-file") from error
    if key is not None and not (key and key.isascii() and key.isprintable() and " " not in key):
        raise InvalidRequest("the API key is empty or holds characters that no key has", needed="a key such as zo_…")
    return key


def _is_loopback(server: str) -> bool:
    host = urlsplit(server).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


def _wait(stop: threading.Event, seconds: float) -> None:
    stop.wait(seconds)
