"""How fast ``pull`` brings a bundle, with all its verification, beside curl that only writes the same files.

Publishes a signed bundle of random codes in the shape of a model of 0.8 billion weights (18 decoder blocks of 22 MiB,
400 MiB in all) behind nginx, and fetches it in turn with one curl process and with ``pull``, from one server, to one
disk. Each side starts from nothing in every round; the page cache is warm. Three figures for ours: the pull itself
(from the first request until the bundle is visible, verified, and flushed to the disk, which curl does not do), the
same with one connection, and the whole command with the start of Python. Beside them what bounds every client that
verifies: SHA-256 alone, and curl followed by ``sha256sum``.

A pair of runs counts where other processes took less than 0.3 of a core meanwhile, for a pull needs both cores; it is
waited for that, and where it never comes, all pairs count and the result says so.

Writes ``results/pull_over_curl.json`` and ``pull.over_curl``: the median over the pairs of the pull's bytes per second
over curl's. Takes about two minutes on a quiet machine; needs nginx, curl and 1.3 GiB of disk.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from recording import record_headlines, write_result

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from large_bundle import NAME, publish_large_bundle
from pulling_device import Device

from device_client.download.pull import PullOptions
from device_client.download.transport import HttpTransport
from shared.bundle.layout import ImageLayout
from shared.bundle.manifest import Manifest
from shared.bundle.signature import signature_tag

PAIRS = 7
QUIET_CORES = 0.3
CONNECTIONS = 4
NGINX = """
daemon off; worker_processes auto; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port} reuseport;
    location ~ ^/v2/{name}/(?:blobs|manifests)/sha256:([0-9a-f]+)$ {{ alias {store}/blobs/sha256/$1; }}
    {tags}
  }}
}}
"""


class Pair(NamedTuple):
    """Seconds of curl and of another way right after it, and the cores that other processes took meanwhile."""

    curl: float
    other: float
    foreign_cores: float


def main() -> None:
    """Measure in turn and record the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where to work (default: the system's temporary folder)")
    parser.add_argument("--patience-seconds", type=float, default=300, help="for quiet pairs of each way")
    parser.add_argument("--dry-run", action="store_true", help="print the figures, record nothing")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="zo-curl-", dir=arguments.folder) as name:
        folder = Path(name)
        layout, manifest = publish_large_bundle(folder / "store")
        home, copy = folder / "home", folder / "curl"
        with serving_by_nginx(layout, folder) as (url, nginx):
            ways: dict[str, Callable[[], None]] = {
                "pull": lambda: pull(url, home, CONNECTIONS),
                "pull_one_connection": lambda: pull(url, home, 1),
                "command": lambda: command(url, home),
                "curl_and_sha256sum": lambda: curl(url, manifest, copy, verifies=True),
            }
            meter = CpuMeter(nginx)

            def pair(way: str) -> Pair:
                clear(home, copy)
                begin, before = time.perf_counter(), meter.foreign_seconds()
                curl(url, manifest, copy)
                middle = time.perf_counter()
                clear(home, copy)
                resumed = time.perf_counter()
                ways[way]()
                end = time.perf_counter()
                foreign = meter.foreign_seconds() - before
                return Pair(middle - begin, end - resumed, round(foreign / (end - begin), 3))

            for way in ways:
                pair(way)  # warms the page cache
            pairs = {
                way: quiet_pairs(lambda way=way: pair(way), PAIRS if way == "pull" else 3, arguments.patience_seconds)  # type: ignore[misc]
                for way in ways
            }
    ratios = {way: round(statistics.median(two.curl / two.other for two in pairs[way]), 3) for way in ways}
    result = {
        "bundle_bytes": manifest.size_bytes,
        "blobs": len(manifest.blobs),
        "connections": CONNECTIONS,
        "over_curl": ratios,
        "pairs": {
            way: [
                {
                    "curl_gigabytes_per_second": round(manifest.size_bytes / two.curl / 1e9, 3),
                    "gigabytes_per_second": round(manifest.size_bytes / two.other / 1e9, 3),
                    "foreign_cores": two.foreign_cores,
                }
                for two in found
            ]
            for way, found in pairs.items()
        },
        "is_quiet": all(two.foreign_cores < QUIET_CORES for found in pairs.values() for two in found),
        "sha256_gigabytes_per_second": round(sha256_rate(), 3),
    }
    if arguments.dry_run:
        print(json.dumps(result, indent=1))
        return
    path = write_result("pull_over_curl", result)
    record_headlines(path, {"pull.over_curl": (ratios["pull"], "x")})
    print(path.read_text())


def quiet_pairs(pair: Callable[[], Pair], count: int, patience_seconds: float) -> list[Pair]:
    """Return as many pairs from a quiet machine; where those do not come in time, all that were measured."""
    found: list[Pair] = []
    end = time.monotonic() + patience_seconds
    while len(quiet := [two for two in found if two.foreign_cores < QUIET_CORES]) < count:
        if time.monotonic() > end and len(found) >= count:
            return found
        while busy_cores() > QUIET_CORES and time.monotonic() < end:
            time.sleep(0.2)
        found.append(pair())
    return quiet


def busy_cores() -> float:
    """Return how many cores are busy, over a short while."""
    before, begin = busy_seconds(), time.perf_counter()
    time.sleep(0.3)
    return (busy_seconds() - before) / (time.perf_counter() - begin)


def busy_seconds() -> float:
    """Return the seconds that all cores have spent on processes since the machine started."""
    user, nice, system = (int(word) for word in Path("/proc/stat").read_text().split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


class CpuMeter:
    """Tells apart who keeps the cores busy: this process, its children and nginx, or anybody else."""

    def __init__(self, nginx: int) -> None:
        workers = Path(f"/proc/{nginx}/task/{nginx}/children").read_text().split()
        self._stats = [Path(f"/proc/{pid}/stat") for pid in (str(nginx), *workers)]

    def foreign_seconds(self) -> float:
        """Return the seconds that others have taken, since a moment that stays the same."""
        ticks = 0
        for stat in self._stats:
            fields = stat.read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        own = os.times()
        ours = own.user + own.system + own.children_user + own.children_system
        return busy_seconds() - ours - ticks / os.sysconf("SC_CLK_TCK")


def clear(*folders: Path) -> None:
    """Remove what was fetched; nobody pays for what another one has left to be written."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    os.sync()


def pull(url: str, home: Path, connections: int) -> None:
    """Pull in this process, as the command does once it has started."""
    transport = HttpTransport()
    device = Device(home, transport)
    device.pull(f"{url}/{NAME}", options=PullOptions(connections=connections))
    transport.close()


def command(url: str, home: Path) -> None:
    """Run ``zo-device pull``."""
    program = "import sys; from device_client.cli import main; sys.exit(main())"
    words = ["--quiet", "pull", f"{url}/{NAME}", "--connections", str(CONNECTIONS)]
    environment = {"PATH": os.environ["PATH"], "ZO_DEVICE_HOME": str(home), "PYTHONPATH": os.environ["PYTHONPATH"]}
    subprocess.run([sys.executable, "-c", program, *words], check=True, env=environment)


def curl(url: str, manifest: Manifest, folder: Path, *, verifies: bool = False) -> None:
    """Fetch the same blobs with one curl process, one after the other over one connection."""
    folder.mkdir()
    words = ["curl", "--silent", "--fail"]
    for blob in manifest.blobs:
        words += [f"{url}/v2/{NAME}/blobs/{blob.digest}", "--output", blob.digest[7:]]
    subprocess.run(words, check=True, cwd=folder)
    if verifies:
        lines = "".join(f"{blob.digest[7:]}  {blob.digest[7:]}\n" for blob in manifest.blobs)
        subprocess.run(["sha256sum", "--check", "--quiet"], input=lines.encode(), check=True, cwd=folder)


def sha256_rate() -> float:
    """Return how many gigabytes one core hashes in a second."""
    data = os.urandom(64 * 1024 * 1024)
    rates = []
    for _ in range(5):
        begin = time.perf_counter()
        hashlib.sha256(data)
        rates.append(len(data) / (time.perf_counter() - begin) / 1e9)
    return statistics.median(rates)


@contextlib.contextmanager
def serving_by_nginx(layout: ImageLayout, folder: Path) -> Iterator[tuple[str, int]]:
    """Run nginx over a layout and give its base URL and its process id."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    digest = layout.resolve(f"{NAME}:latest").digest
    tags = [
        f"location = /v2/{NAME}/manifests/{tag} {{ alias {layout.blob_path(layout.resolve(f'{NAME}:{tag}').digest)}; }}"
        for tag in ("latest", signature_tag(digest))
    ]
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, store=layout.root, port=port, name=NAME, tags="\n    ".join(tags)))
    folder.chmod(0o755)  # nginx's workers run as another user where its master is root
    for path in [layout.root, *layout.root.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    with subprocess.Popen(["nginx", "-p", str(folder), "-c", str(config)]) as process:
        try:
            end = time.monotonic() + 20
            while not _answers(port):
                if time.monotonic() > end:
                    raise SystemExit("nginx does not answer")
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}", process.pid
        finally:
            process.terminate()


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main()
