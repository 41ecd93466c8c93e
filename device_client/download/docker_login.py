"""User and password for a registry, as a login of docker, podman, skopeo or oras left them in a file.

    REGISTRY_AUTH_FILE, else $DOCKER_CONFIG/config.json, else ~/.docker/config.json
    {"auths": {"<host[:port]>": {"auth": "<base64 of user:password>"}}}

A login that is kept by a helper program is not read: nothing is run here. Costs nothing until a server asks who we are.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from shared.errors import InvalidRequest

MAX_LOGIN_FILE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Login:
    """Who we are at a registry.

    Attributes:
        user: The user's name.
        password: Password, or token that takes its place; never shown.
        source: Where it comes from, for messages.
    """

    user: str
    password: str = field(repr=False)
    source: str


def read_docker_login(file: Path, server: str) -> Login | None:
    """Return the login for a server, or None where the file has none or does not exist.

    Args:
        file: The file.
        server: Base URL.

    Raises:
        InvalidRequest: The file cannot be read, or has another form.
    """
    try:
        with file.open("rb") as opened:
            document = json.loads(opened.read(MAX_LOGIN_FILE_BYTES))
        entries = {_host(name): entry for name, entry in document.get("auths", {}).items()}
        encoded = entries.get(urlsplit(server).netloc, {}).get("auth")
        if not encoded:
            return None
        user, colon, password = base64.b64decode(encoded, validate=True).decode().partition(":")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InvalidRequest(
            f"{file}: {error.strerror}", needed="a file of logins that can be read", next_step="change its permissions"
        ) from error
    except (ValueError, binascii.Error, AttributeError, RecursionError) as error:
        raise InvalidRequest(
            f"{file} is not a file of registry logins",
            needed="the file that docker login, podman login or skopeo login writes",
            next_step="log in again, or set REGISTRY_AUTH_FILE to another file",
        ) from error
    return Login(user, password.rstrip("\0"), str(file)) if colon else None


def _host(name: str) -> str:
    """Return host and port of an entry's name, which may be a URL with the path of an old API."""
    return name.partition("://")[2].partition("/")[0] if "://" in name else name.removesuffix("/")
