"""What one server is shown of who we are: a key of its own, or what its challenge asks for.

    a key                  Authorization: Bearer KEY, with every request
    Bearer challenge       GET realm?service=…&scope=…, with the login where there is one, without where there is none;
                           the token in the answer is presented until the server refuses it, then a new one is fetched
    Basic challenge        the login itself

A token service of an https server has to be https. Nothing is presented to another host; the registry sees to that.
References: Distribution, "Token authentication specification"; RFC 9110, section 11; RFC 7617.
"""

from __future__ import annotations

import base64
import re
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import urlencode, urlsplit

from pydantic import BaseModel, ValidationError

from device_client.download.docker_login import Login
from device_client.download.retry import TransientError
from shared.errors import NetworkError, Unauthorized

if TYPE_CHECKING:
    from device_client.download.transport import Response, Transport

MAX_CHALLENGE_LETTERS = 8192
MAX_TOKEN_BYTES = 256 * 1024
_CHALLENGE = re.compile(r"(?:^|,)\s*(bearer|basic)\s+", re.IGNORECASE)
_PARAMETER = re.compile(r'\b([a-z]+)="([^"]*)"', re.IGNORECASE)


class Access:
    """Finds out what a server wants to see; may be used from several threads.

    Args:
        transport: The door to the network.
        server: Base URL of the server.
        api_key: Key that is presented as it is, or None.
        find_login: Returns the login for the server, or None; called at the first challenge, where there is no key.
    """

    def __init__(
        self,
        transport: Transport,
        server: str,
        *,
        api_key: str | None = None,
        find_login: Callable[[], Login | None] = lambda: None,
    ) -> None:
        self._transport, self._server, self._find_login = transport, server, find_login
        self._has_key = api_key is not None
        self._lock = threading.Lock()
        self.authorization = f"Bearer {api_key}" if api_key else None

    def learn(self, challenge: str, *, rejected: str | None) -> bool:
        """Get what a challenge asks for, and return whether there is something new to present.

        Args:
            challenge: The value of WWW-Authenticate.
            rejected: What was presented when the challenge came.

        Raises:
            Unauthorized: The token service refuses the login.
            TransientError: The token service does not answer now.
            NetworkError: What it answers is not a token.
        """
        if self._has_key:
            return False
        with self._lock:
            if self.authorization != rejected:
                return True  # another thread was quicker
            offered = parse_challenges(challenge)
            if "realm" in (bearer := offered.get("bearer", {})) and "://" in bearer["realm"]:
                found = self._token(bearer, self._find_login())
            elif "basic" in offered and rejected is None and (login := self._find_login()) is not None:
                found = _basic(login)
            else:
                found = None
            if found is not None:
                self.authorization = found
            return found is not None

    def _token(self, bearer: dict[str, str], login: Login | None) -> str | None:
        """Return a token of the service that a challenge names; None where it gives none to strangers."""
        realm = bearer["realm"]
        place = urlsplit(realm)
        if place.scheme != "https" and (place.scheme != "http" or urlsplit(self._server).scheme == "https"):
            raise NetworkError(
                f"{self._server} wants a token from {realm[:200]!r}",
                needed="a token service with an https address",
                next_step="ask the server's operator",
            )
        query = urlencode([(name, text) for name, text in bearer.items() if name in ("service", "scope")])
        url = f"{realm}{'&' if place.query else '?'}{query}"
        headers = {"Accept-Encoding": "identity", "User-Agent": "zo-device"}
        shown = f"the token service {place.scheme}://{place.netloc}{place.path}"
        with self._transport.get(url, headers | ({"Authorization": _basic(login)} if login else {})) as answer:
            if answer.status in (401, 403):
                if login is None:
                    return None
                raise Unauthorized(
                    f"{shown} refuses the login of {login.user!r} from {login.source}",
                    needed="a user name and a password that it accepts",
                    next_step="log in again, or give --username NAME and --api-key-file FILE with the password",
                )
            if answer.status == 429 or answer.status >= 500:
                raise TransientError(f"{shown} answers {answer.status}")
            token = _read_token(answer) if answer.status == 200 else None
        if token is None:
            raise NetworkError(
                f"{shown} answers {answer.status} without a token",
                needed="a token in JSON",
                next_step="check the address of the server",
            )
        return f"Bearer {token}"


def parse_challenges(value: str) -> dict[str, dict[str, str]]:
    """Return the parameters of the Bearer and Basic challenges in a value of WWW-Authenticate, by scheme."""
    parts = _CHALLENGE.split(value[:MAX_CHALLENGE_LETTERS])
    return {
        scheme.lower(): {name.lower(): text for name, text in _PARAMETER.findall(parameters)}
        for scheme, parameters in zip(parts[1::2], parts[2::2], strict=True)
    }


def _basic(login: Login) -> str:
    return "Basic " + base64.b64encode(f"{login.user}:{login.password}".encode()).decode()


class _TokenAnswer(BaseModel):
    """The two names that a token goes by; everything else is ignored."""

    token: str = ""
    access_token: str = ""


def _read_token(answer: Response) -> str | None:
    data = b""
    for piece in answer.body:
        data += piece
        if len(data) > MAX_TOKEN_BYTES:
            return None
    try:
        said = _TokenAnswer.model_validate_json(data)
    except ValidationError:
        return None
    token = said.token or said.access_token
    return token if re.fullmatch(r"[\x21-\x7e]+", token) else None
