"""How fast the service sends the blobs of a bundle, beside nginx on the same files.

Publishes a bundle with four blobs of 64 MiB, starts ``zo-cloud serve`` with keys and a real nginx (``sendfile``, as
many workers as cores) over the same folder, and lets the same plain client pull with 1, 8 and 32 connections from
both in turn: each connection reads one blob after the other and throws the bytes away. Writes
``results/pull_over_nginx.json`` and ``service.pull_over_nginx.<1|8|32>``, the median over the rounds of the service's
bytes per second over nginx's in the same round. Takes about a minute; needs nginx and 300 MiB of disk.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from recording import record_headlines, write_result

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

BLOBS, BLOB_BYTES = 4, 64 * 1024 * 1024
PARALLEL = (1, 8, 32)
ROUNDS = 7
BLOBS_OF_A_PULL = {1: 16, 8: 4, 32: 2}
NAME = "bench/large"
Address = tuple[str, int]
NGINX = """
daemon off; worker_processes auto; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port} reuseport;
    location ~ ^/v2/.*/blobs/sha256:([0-9a-f]+)$ {{ alias {store}/blobs/sha256/$1; }}
  }}
}}
"""


def main() -> None:
    """Measure both servers in turn and record the ratios."""
    with tempfile.TemporaryDirectory(prefix="zo-pull-") as folder, contextlib.ExitStack() as servers:
        data = Path(folder) / "data"
        paths = publish_large(data)
        service, key = servers.enter_context(serving(data))
        nginx = servers.enter_context(serving_by_nginx(data / "store", Path(folder)))
        rates = {parallel: _measure(parallel, paths, service, nginx, key) for parallel in PARALLEL}
    ratios = {
        parallel: statistics.median(ours / theirs for ours, theirs in rounds) for parallel, rounds in rates.items()
    }
    table = {
        str(parallel): {
            "service_bytes_per_second": [round(ours) for ours, _ in rounds],
            "nginx_bytes_per_second": [round(theirs) for _, theirs in rounds],
            "median_ratio": round(ratios[parallel], 3),
        }
        for parallel, rounds in rates.items()
    }
    path = write_result("pull_over_nginx", {"blob_bytes": BLOB_BYTES, "parallel": table})
    headlines = {f"service.pull_over_nginx.{parallel}": (round(ratios[parallel], 3), "x") for parallel in PARALLEL}
    record_headlines(path, dict(headlines))
    print(path.read_text())


def publish_large(data: Path) -> list[str]:
    """Publish a bundle with large random blobs in a data folder, and return the paths of their URLs."""
    from tiny_bundle import make_tiny_bundle

    from shared.bundle.manifest import Descriptor, parse_manifest

    bundle = make_tiny_bundle(data / "store", reference=f"{NAME}:latest")
    layout = bundle.layout
    manifest = parse_manifest(layout.blob_path(layout.resolve(bundle.reference).digest).read_bytes())
    large: list[Descriptor] = []
    for number in range(BLOBS):
        blob = layout.add_bytes(os.urandom(BLOB_BYTES), "application/octet-stream")
        title = {"org.opencontainers.image.title": f"large-{number}.bin"}
        large.append(blob.model_copy(update={"annotations": title}))
    complete = manifest.model_copy(update={"layers": [*manifest.layers, *large]}).to_bytes()
    layout.update({bundle.reference: layout.add_bytes(complete, manifest.media_type)})
    return [f"/v2/{NAME}/blobs/{blob.digest}" for blob in large]


@contextlib.contextmanager
def serving(data: Path) -> Iterator[tuple[Address, str]]:
    """Run the service on a data folder; yield its address and its first key."""
    command = [sys.executable, "-m", "cloud_service.cli", "serve", "--data", str(data), "--port", "0"]
    with (
        (data.parent / "stderr.txt").open("w+") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        assert process.stdout is not None
        try:
            url = urlsplit(next(json.loads(line)["url"] for line in process.stdout if '"listening"' in line))
            drain = threading.Thread(target=process.stdout.read)
            drain.start()
            printed = (data.parent / "stderr.txt").read_text()
            key = next(line.split()[-1] for line in printed.splitlines() if "shown only once" in line)
            yield (str(url.hostname), int(url.port or 0)), key
        finally:
            process.terminate()


@contextlib.contextmanager
def serving_by_nginx(store: Path, folder: Path) -> Iterator[Address]:
    """Run nginx over the blobs of a store; yield its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address: Address = free.getsockname()
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, store=store, port=address[1]))
    folder.chmod(0o755)  # nginx's workers run as another user where its master is root
    for path in [store.parent, *store.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    store.chmod(0o755)
    with subprocess.Popen(["nginx", "-p", str(folder), "-c", str(config)]) as process:
        try:
            end = time.monotonic() + 20
            while not _answers(address):
                if time.monotonic() > end:
                    raise TimeoutError(f"nginx does not answer at {address}")
                time.sleep(0.05)
            yield address
        finally:
            process.terminate()


def pull(address: Address, paths: list[str], parallel: int, key: str) -> float:
    """Let ``parallel`` connections read blobs, and return the bytes per second of all together."""
    failures: list[BaseException] = []

    def one(number: int) -> None:
        try:
            _read_blobs(address, [paths[(number + step) % len(paths)] for step in range(count)], key)
        except BaseException as error:  # told to the caller's thread
            failures.append(error)

    count = BLOBS_OF_A_PULL[parallel]
    threads = [threading.Thread(target=one, args=(number,)) for number in range(parallel)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    if failures:
        raise failures[0]
    return parallel * count * BLOB_BYTES / seconds


def _read_blobs(address: Address, paths: list[str], key: str) -> None:
    buffer = memoryview(bytearray(1024 * 1024))
    with socket.create_connection(address, 60) as connection:
        for path in paths:
            connection.sendall(
                f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {key}\r\n\r\n".encode()
            )
            received = 0
            head = b""
            while b"\r\n\r\n" not in head:
                size = connection.recv_into(buffer)
                head += buffer[:size]
            head, _, body = head.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 "), head
            received = len(body)
            while received < BLOB_BYTES:
                size = connection.recv_into(buffer, min(len(buffer), BLOB_BYTES - received))
                assert size, "the connection ended within a blob"
                received += size


def _measure(parallel: int, paths: list[str], service: Address, nginx: Address, key: str) -> list[tuple[float, float]]:
    for address in (service, nginx):
        pull(address, paths, parallel, key)  # files in the page cache, workers awake
    rounds = []
    for number in range(ROUNDS):
        order = (service, nginx) if number % 2 else (nginx, service)
        rate = {address: pull(address, paths, parallel, key) for address in order}
        rounds.append((rate[service], rate[nginx]))
    return rounds


def _answers(address: Address) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(address, 1):
        return True
    return False


if __name__ == "__main__":
    main()
