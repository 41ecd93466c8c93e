"""The one door to the network: GET, and nothing else. The only module that knows httpx.

Redirects are not followed and statuses are not judged here; that is the registry's business. Proxies (``HTTPS_PROXY``,
``NO_PROXY``) and certificate authorities (``SSL_CERT_FILE``) of the environment are honoured by httpx.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

import httpx

from device_client.download.retry import TransientError
from shared.errors import NetworkError

STALL_SECONDS = 30.0
CONNECT_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Response:
    """An answer whose body was not read yet.

    Attributes:
        status: HTTP status.
        headers: Header fields, names in lower case.
        body: The body's bytes as they arrive; raises ``TransientError`` when the connection breaks or stalls.
    """

    status: int
    headers: Mapping[str, str]
    body: Iterator[bytes]


class Transport(Protocol):
    """Sends GET requests; may be used from several threads."""

    def get(self, url: str, headers: Mapping[str, str]) -> AbstractContextManager[Response]:
        """Send one request; leaving the context closes the answer, read or not.

        Raises:
            TransientError: No answer came.
        """


class HttpxTransport:
    """The real transport.

    Args:
        connections: Connections kept open at most.
        stall_seconds: How long a connection may stay silent.
    """

    def __init__(self, *, connections: int = 8, stall_seconds: float = STALL_SECONDS) -> None:
        limits = httpx.Limits(max_connections=connections + 1, max_keepalive_connections=connections + 1)
        timeout = httpx.Timeout(stall_seconds, connect=min(stall_seconds, CONNECT_SECONDS), pool=None)
        try:
            self._client = httpx.Client(limits=limits, timeout=timeout, follow_redirects=False)
        except (ValueError, ImportError, OSError) as error:
            raise NetworkError(
                f"the proxy or certificate settings of the environment are unusable: {error}",
                next_step="check HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and SSL_CERT_FILE",
            ) from error

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    @contextmanager
    def get(self, url: str, headers: Mapping[str, str]) -> Iterator[Response]:
        """Send one request; see ``Transport.get``."""
        with _network_errors(url), self._client.stream("GET", url, headers=dict(headers)) as answer:
            fields = {name.lower(): value for name, value in answer.headers.items()}
            yield Response(answer.status_code, fields, answer.iter_raw())


@contextmanager
def _network_errors(url: str) -> Iterator[None]:
    try:
        yield
    except httpx.TimeoutException as error:
        raise TransientError(f"{_host(url)} did not answer in time ({type(error).__name__})") from error
    except httpx.UnsupportedProtocol as error:
        raise NetworkError(f"{_host(url)}: {error}") from error
    except (httpx.TransportError, httpx.StreamError) as error:
        raise TransientError(f"{_host(url)}: {error or type(error).__name__}") from error
    except (httpx.InvalidURL, UnicodeError) as error:
        raise NetworkError(f"the server sent to an unusable address: {error}") from error


def _host(url: str) -> str:
    """Return scheme and host only: a redirect's query may hold a secret."""
    return url.partition("?")[0].split("/", 3)[2] if "://" in url else "the server"
