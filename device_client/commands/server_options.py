"""The options of commands that talk to a server, and the connection they describe."""

from __future__ import annotations

import argparse
import ipaddress
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from device_client.console import Console
from device_client.download.authentication import Access
from device_client.download.docker_login import Login, read_docker_login
from device_client.download.reference import normalized_server, origin_of
from device_client.download.registry import Registry
from device_client.download.retry import LEAST_BYTES, RetryPolicy, interruptible_sleep
from device_client.settings import Settings
from shared.errors import InvalidRequest


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """Declare which server, with which key, and how patiently."""
    parser.add_argument("--server", metavar="URL", help="server for names (default: ZO_DEVICE_SERVER)")
    parser.add_argument("--api-key-file", type=Path, metavar="FILE", help="file with the key (or ZO_DEVICE_API_KEY)")
    parser.add_argument(
        "--username",
        metavar="NAME",
        help="user of a registry; the key is the password then (or ZO_DEVICE_USERNAME; without a key: docker's logins)",
    )
    parser.add_argument("--retries", type=int, default=5, metavar="N", help="attempts in vain (default: 5)")


@contextmanager
def connect(
    arguments: argparse.Namespace,
    server: str,
    console: Console,
    settings: Settings,
    *,
    stop: threading.Event,
    max_bytes_per_second: int | None = None,
) -> Iterator[Registry]:
    """Open no connection yet, but everything that one needs; close what was opened at the end.

    Args:
        arguments: Parsed ``add_server_options``.
        server: Base URL.
        console: Told why something is tried again.
        settings: The key of its server, where no file is given.
        stop: Ends waiting when set.
        max_bytes_per_second: The pace that will be kept; a slow one is kept in small steps, so that the server sees
            that its bytes are taken.

    Raises:
        InvalidRequest: An option or the key is unusable.
    """
    from device_client.download.transport import (
        BLOCK_BYTES,
        HttpTransport,
    )  # HTTP and TLS, which most commands never use

    if arguments.retries < 0:
        raise InvalidRequest(f"--retries {arguments.retries}", needed="0 or more", param="retries")
    username = arguments.username or settings.username
    api_key = read_api_key(arguments.api_key_file, server, settings, username=username)
    if api_key and urlsplit(server).scheme == "http" and not _is_loopback(server):
        console.warn(f"the API key goes to {urlsplit(server).hostname} unencrypted; use https")
    if username and not api_key:
        raise InvalidRequest(
            f"the user name {username!r} without a password",
            needed="the password",
            next_step="give --api-key-file FILE with it, or set ZO_DEVICE_API_KEY",
            param="username",
        )

    def find_login() -> Login | None:
        if username and api_key:
            return Login(username, api_key, "--username" if arguments.username else "ZO_DEVICE_USERNAME")
        login = read_docker_login(settings.login_file, server) if settings.login_file else None
        if login and urlsplit(server).scheme == "http" and not _is_loopback(server):
            console.warn(
                f"the login in {login.source} is not sent to {urlsplit(server).hostname} unencrypted; use https"
            )
            return None
        return login

    pace = max_bytes_per_second or 4 * BLOCK_BYTES
    block_bytes = min(BLOCK_BYTES, max(LEAST_BYTES, pace // 4))
    transport = HttpTransport(proxies=settings.proxies, ca_file=settings.ca_file, block_bytes=block_bytes)
    try:
        yield Registry(
            transport,
            server,
            access=Access(transport, server, api_key=None if username else api_key, find_login=find_login),
            policy=RetryPolicy(retries=arguments.retries),
            sleep=interruptible_sleep(stop),
            notify=console.warn,
        )
    finally:
        transport.close()


def read_api_key(file: Path | None, server: str, settings: Settings, *, username: str | None = None) -> str | None:
    """Return the key, or the password of ``username``, from a file, else from the environment, else None.

    A file is named for this one command. The environment's key belongs to the environment's server: a reference that
    somebody passed on must not decide who gets to see it.

    Raises:
        InvalidRequest: The file cannot be read or holds no key, or the environment's key is another server's.
    """
    key = settings.api_key
    if file is None and key is not None:
        _check_key_belongs_to(server, settings)
    if file is not None:
        try:
            key = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeError) as error:
            raise InvalidRequest(f"--api-key-file {file}: {error}", param="api-key-file") from error
    if key is not None and username is None and not (key and key.isascii() and key.isprintable() and " " not in key):
        raise InvalidRequest("the API key is empty or holds characters that no key has", needed="a key such as zo_…")
    return key


def _check_key_belongs_to(server: str, settings: Settings) -> None:
    if settings.server is None and _is_loopback(server):
        return
    if settings.server is not None and origin_of(normalized_server(settings.server)) == origin_of(server):
        return
    raise InvalidRequest(
        f"ZO_DEVICE_API_KEY is not known to be for {server}",
        needed=f"ZO_DEVICE_SERVER with the server that the key is for (it is {settings.server or 'not set'})",
        next_step=f"give this server's key by --api-key-file FILE, or set ZO_DEVICE_SERVER={server}, "
        "or unset ZO_DEVICE_API_KEY",
    )


def _is_loopback(server: str) -> bool:
    host = urlsplit(server).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
