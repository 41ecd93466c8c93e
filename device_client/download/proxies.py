"""Which proxy a request goes through, by the variables that other programs follow too.

    HTTP_PROXY, HTTPS_PROXY   for servers of that scheme; ALL_PROXY where the scheme has none
    NO_PROXY                  servers without a proxy: a host and all below it, host:port, an address, a network, or *

The lower-case name counts where both are set. A proxy is http://[user:password@]host:port, or socks5h:// and socks5://,
where socks5 looks the server's name up here and socks5h at the proxy. User and password are never shown. Pure.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from shared.errors import NetworkError

_DEFAULT_PORTS = {"http": 80, "socks5": 1080, "socks5h": 1080}
_FORM = "http://HOST:PORT or socks5h://HOST:PORT"


@dataclass(frozen=True, slots=True)
class Proxy:
    """One proxy.

    Attributes:
        variable: The environment variable that names it.
        scheme: ``http``, ``socks5`` or ``socks5h``.
        host: Its host.
        port: Its port.
        user: User name, or None.
        password: Password, or None.
    """

    variable: str
    scheme: str
    host: str
    port: int
    user: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"the proxy {self.scheme}://{host}:{self.port} ({self.variable})"


@dataclass(frozen=True, slots=True)
class ProxySettings:
    """What the environment says about proxies.

    Attributes:
        by_scheme: Scheme, or ``all``, to the variable's name and value.
        exceptions: The entries of NO_PROXY.
    """

    by_scheme: Mapping[str, tuple[str, str]] = field(default_factory=dict, repr=False)
    exceptions: tuple[str, ...] = ()

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> ProxySettings:
        """Return what these variables say."""
        named = {scheme: _variable(environment, f"{scheme}_proxy") for scheme in ("http", "https", "all")}
        _, exceptions = _variable(environment, "no_proxy")
        return cls(
            {scheme: found for scheme, found in named.items() if found[1]},
            tuple(entry.strip().lower() for entry in exceptions.split(",") if entry.strip()),
        )

    def proxy_for(self, url: str) -> Proxy | None:
        """Return the proxy for a URL, or None where there is none.

        Raises:
            NetworkError: The proxy's own URL is unusable.
        """
        parts = urlsplit(url)
        found = self.by_scheme.get(parts.scheme) or self.by_scheme.get("all")
        if found is None or self._excepts((parts.hostname or "").rstrip("."), parts.port):
            return None
        return parse_proxy(*found)

    def _excepts(self, host: str, port: int | None) -> bool:
        return any(_matches(entry, host, port) for entry in self.exceptions)


def parse_proxy(variable: str, value: str) -> Proxy:
    """Return the proxy that a variable names.

    Raises:
        NetworkError: It is not the address of a proxy, or of a kind that is not spoken here.
    """
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        port = parts.port
    except ValueError as error:
        raise _unusable(variable, "is not an address of a proxy") from error
    if parts.scheme == "https":
        raise _unusable(variable, "names a proxy that is itself spoken to by TLS (https://)")
    if parts.scheme not in _DEFAULT_PORTS:
        raise _unusable(variable, f"names a proxy of the kind {parts.scheme[:20]!r}")
    if not parts.hostname:
        raise _unusable(variable, "names no host")
    user = None if parts.username is None else unquote(parts.username)
    password = None if parts.password is None else unquote(parts.password)
    return Proxy(variable, parts.scheme, parts.hostname, port or _DEFAULT_PORTS[parts.scheme], user, password)


def _variable(environment: Mapping[str, str], name: str) -> tuple[str, str]:
    shown = name if name in environment else name.upper()
    return shown, environment.get(shown, "").strip()


def _unusable(variable: str, found: str) -> NetworkError:
    return NetworkError(
        f"{variable} {found}",
        needed=f"{_FORM}; what goes through it to an https server is encrypted all the same",
        next_step=f"set {variable} to such an address, or unset it",
    )


def _matches(entry: str, host: str, port: int | None) -> bool:
    if entry == "*":
        return True
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        name, colon, number = entry.rpartition(":")
        if colon and number.isdecimal():
            return port == int(number) and _matches(name, host, port)
        name = entry.lstrip("*").lstrip(".")
        return bool(name) and (host == name or host.endswith(f".{name}"))
