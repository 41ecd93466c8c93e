"""The device's settings, and the only reader of environment variables.

The variables, what they say, and what holds without them:

    ZO_DEVICE_HOME          where bundles and runs are kept            ~/.local/share/zo-device
    ZO_DEVICE_SERVER        base URL that plain names are pulled from  none
    ZO_DEVICE_API_KEY       key presented to that server only (without
                            ZO_DEVICE_SERVER: to this machine only)    none
    ZO_DEVICE_USERNAME      user of a registry, whose password is
                            ZO_DEVICE_API_KEY                          the key alone
    REGISTRY_AUTH_FILE, DOCKER_CONFIG
                            logins of docker, podman, skopeo, oras     ~/.docker/config.json
    ZO_DEVICE_TRUSTED_KEY   ed25519:… that bundles must be signed by   the key pinned at first contact
    ZO_DEVICE_DEBUG         1 prints tracebacks of unexpected errors   off
    HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY
                            what to pull through                       no proxy
    SSL_CERT_FILE           certificates that servers are trusted by   the system's
    NO_COLOR                anything turns colours off                 colours on a terminal

An empty variable counts as unset.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from device_client.download.proxies import ProxySettings
from shared.bundle.layout import ImageLayout


@dataclass(frozen=True, slots=True)
class Settings:
    """What a command needs to know about its surroundings.

    Attributes:
        home: The folder of everything that zo-device keeps.
        server: Base URL for references without one, or None.
        api_key: The key for ``server``, or for a server on this machine where that is None; never shown.
        username: The user whose password ``api_key`` is, or None where it is a key.
        trusted_key: Fingerprint that bundles must be signed by, or None.
        is_offline: Whether opening a socket is forbidden.
        is_debugging: Whether unexpected errors show their traceback.
        has_color: Whether colours may be used.
        proxies: What to pull through.
        login_file: Where other programs keep logins at registries, or None to read none.
        ca_file: The certificates that servers are trusted by, or None for the system's.
    """

    home: Path
    server: str | None = None
    api_key: str | None = field(default=None, repr=False)
    username: str | None = None
    trusted_key: str | None = None
    is_offline: bool = False
    is_debugging: bool = False
    has_color: bool = True
    proxies: ProxySettings = field(default_factory=ProxySettings)
    ca_file: Path | None = None
    login_file: Path | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """Return the settings that the environment variables ask for; empty ones count as unset."""
        home = environment.get("ZO_DEVICE_HOME") or "~/.local/share/zo-device"
        return cls(
            home=Path(home).expanduser().absolute(),
            server=environment.get("ZO_DEVICE_SERVER") or None,
            api_key=environment.get("ZO_DEVICE_API_KEY") or None,
            username=environment.get("ZO_DEVICE_USERNAME") or None,
            trusted_key=environment.get("ZO_DEVICE_TRUSTED_KEY") or None,
            is_debugging=environment.get("ZO_DEVICE_DEBUG", "") not in ("", "0"),
            has_color=not environment.get("NO_COLOR"),
            proxies=ProxySettings.from_environment(environment),
            login_file=_login_file(environment),
            ca_file=Path(environment["SSL_CERT_FILE"]) if environment.get("SSL_CERT_FILE") else None,
        )

    @property
    def store(self) -> ImageLayout:
        """The local store of bundles; it may not exist yet."""
        return ImageLayout(self.home / "bundles")

    @property
    def runs(self) -> Path:
        """The folder of tuning runs."""
        return self.home / "runs"

    @property
    def backends(self) -> Path:
        """The folder of compiled kernels, and of what was measured of the backends on this machine."""
        return self.home / "backends"

    @property
    def signing_key(self) -> Path:
        """The file of the key that this device signs fine-tunes with; it may not exist yet."""
        return self.home / "signing-key.pem"

    @property
    def trusted_keys(self) -> Path:
        """The file of pinned publisher keys."""
        return self.home / "trusted_keys.json"


def _login_file(environment: Mapping[str, str]) -> Path | None:
    if named := environment.get("REGISTRY_AUTH_FILE"):
        return Path(named)
    try:
        return Path(environment.get("DOCKER_CONFIG") or "~/.docker").expanduser() / "config.json"
    except RuntimeError:  # this user has no home folder
        return None
