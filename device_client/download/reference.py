"""What is to be pulled, from where: ``https://host[:port]/name[:tag][@sha256:…]``, or ``name…`` from the set server.

Knows nothing about sockets.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from shared.api import BUNDLE_NAME_PATTERN, TAG_PATTERN
from shared.bundle.digest import check_digest
from shared.errors import InvalidRequest

_DEFAULT_PORTS = {"http": 80, "https": 443}
_FORM = "https://host/name:tag, name:tag or name@sha256:…"


@dataclass(frozen=True, slots=True)
class BundleReference:
    """One bundle on one server.

    Attributes:
        server: Base URL without a trailing slash; empty where none is known.
        name: The bundle's name.
        tag: The tag asked for, or None where only a digest was given.
        digest: The manifest digest that is required, or None.
    """

    server: str
    name: str
    tag: str | None
    digest: str | None = None

    @property
    def source(self) -> str:
        """Server and name: what a publisher's key is pinned for."""
        return f"{self.server}/{self.name}"

    @property
    def remote(self) -> str:
        """What to ask the server for: the digest where there is one, else the tag."""
        return self.digest or self.tag or "latest"

    @property
    def local(self) -> str:
        """The reference in the local store; a bundle pulled by digest alone is tagged by its first 12 digits."""
        return f"{self.name}:{self.tag or tag_of_digest(self.digest or '')}"

    def __str__(self) -> str:
        return f"{self.source}{f':{self.tag}' if self.tag else ''}{f'@{self.digest}' if self.digest else ''}"


def tag_of_digest(digest: str) -> str:
    """Return the local tag of a bundle that is known by its digest alone: the algorithm and 12 digits."""
    return digest.replace(":", "-")[:19]


def parse_reference(text: str, server: str | None) -> BundleReference:
    """Return the bundle that ``text`` names.

    Args:
        text: A URL with the name as its path, or a name for ``server``.
        server: Base URL for names; None leaves the reference without a server.

    Raises:
        InvalidRequest: The text has another form.
        InvalidDigest: The digest is malformed.
    """
    base = normalized_server(server) if server else ""
    rest = text
    if "://" in text:
        parts = urlsplit(text)
        base, rest = normalized_server(f"{parts.scheme}://{parts.netloc}"), parts.path.lstrip("/")
        if parts.query or parts.fragment:
            raise InvalidRequest(f"reference {text!r}", needed=_FORM)
    named, at, digest = rest.partition("@")
    folder, slash, last = named.rpartition("/")
    last, colon, tag = last.partition(":")
    name = folder + slash + last
    if len(name) > 200 or not re.fullmatch(BUNDLE_NAME_PATTERN, name) or (colon and not re.fullmatch(TAG_PATTERN, tag)):
        raise InvalidRequest(f"reference {text!r}", needed=_FORM)
    if at:
        return BundleReference(base, name, tag or None, check_digest(digest))
    return BundleReference(base, name, tag or "latest")


def normalized_server(url: str) -> str:
    """Return a base URL in one spelling: lower-case host, no default port, no trailing slash.

    Raises:
        InvalidRequest: It is no http or https URL of a host, or holds a password.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InvalidRequest(f"server {url!r}", needed="a URL such as https://models.example.org") from error
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname or parts.query or parts.fragment:
        raise InvalidRequest(f"server {url!r}", needed="a URL such as https://models.example.org")
    if parts.username is not None or parts.password is not None:
        raise InvalidRequest(
            "a server URL with a user name or password in it", next_step="give the key by ZO_DEVICE_API_KEY"
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    suffix = "" if port in (None, _DEFAULT_PORTS[parts.scheme]) else f":{port}"
    return f"{parts.scheme}://{host}{suffix}{parts.path.rstrip('/')}"


def origin_of(url: str) -> tuple[str, str | None, int | None]:
    """Return scheme, host and port of a URL: what a key for one server is compared by."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or _DEFAULT_PORTS.get(parts.scheme)
