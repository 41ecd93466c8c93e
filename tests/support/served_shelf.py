"""``zo-cloud serve`` as a process of its own on the folder of a shelf, and Debian's registry beside it."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from shelf import KEY

DEADLINE_SECONDS = 60


class Served(NamedTuple):
    """Host and port of the service, and its admin key."""

    host: str
    key: str


@contextlib.contextmanager
def serving_shelf(folder: Path) -> Iterator[Served]:
    """Serve what a shelf has published, signed by the shelf's key."""
    key_file = folder / "signing-key.pem"
    key_file.write_bytes(KEY.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    key_file.chmod(0o600)
    command = [sys.executable, "-m", "cloud_service.cli", "serve", "--data", str(folder), "--port", "0"]
    with _running(command, folder / "serve.log") as log:
        host = log.wait_for(r'"url": ?"http://([^"]+)"')
        yield Served(host, log.wait_for(r"\b(zo_[0-9a-f]+_\S+)"))


@contextlib.contextmanager
def running_registry(
    folder: Path, cache_of: Served | None = None, *, auth: dict[str, Any] | None = None, same_files: Path | None = None
) -> Iterator[str]:
    """Run a docker-registry with its files and configuration in ``folder``, and give its host and port.

    Args:
        folder: Does not exist yet.
        cache_of: Where it fetches what it is asked for and lacks; it is then read-only.
        auth: Its configuration of who may come; None lets everybody in.
        same_files: The folder of another registry whose files it serves; None begins empty.
    """
    folder.mkdir()
    remote = {"remoteurl": f"http://{cache_of.host}", "username": "any", "password": cache_of.key} if cache_of else {}
    config = {
        "version": 0.1,
        "log": {"level": "info", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str((same_files or folder) / "registry")}},
        "http": {"addr": "127.0.0.1:0"},
        "proxy": remote,
        "auth": auth or {},
    }
    (folder / "config.yml").write_text(json.dumps(config))  # JSON is YAML
    with _running(["docker-registry", "serve", str(folder / "config.yml")], folder / "log.txt") as log:
        yield log.wait_for(r"listening on (127\.0\.0\.1:\d+)")


class _Log(NamedTuple):
    """What a process prints."""

    file: Path
    process: subprocess.Popen[bytes]

    def wait_for(self, pattern: str) -> str:
        """Return the first group of the pattern as soon as it is printed."""
        end = time.monotonic() + DEADLINE_SECONDS
        while time.monotonic() < end and self.process.poll() is None:
            if (found := re.search(pattern, self.file.read_text())) is not None:
                return found[1]
            time.sleep(0.02)
        raise AssertionError(f"no {pattern} in what {self.process.args!r} printed:\n{self.file.read_text()}")


@contextlib.contextmanager
def _running(command: list[str], file: Path) -> Iterator[_Log]:
    with file.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            yield _Log(file, process)
        finally:
            process.terminate()
            process.wait(DEADLINE_SECONDS)
