"""How fast ``pull`` brings a bundle, with all its verification, beside curl that only writes the same files.

Publishes a signed bundle of random codes in the shape of a model of 0.8 billion weights (18 decoder blocks of 22 MiB,
400 MiB in all) behind nginx, and fetches it in turn with ``pull`` and with one curl process, from one server, to one
disk. Each side starts from nothing in every round; the page cache is warm. Three figures for ours: the pull itself
(from the first request until the bundle is visible, durable on the disk and verified), the same with one connection,
and the whole command with the start of Python. Beside them what bounds every verifying client: SHA-256 alone, and curl
followed by ``sha256sum``.

Writes ``results/pull_over_curl.json`` and ``pull.over_curl``: the median over the rounds of the pull's bytes per
second over curl's in the same round. Takes about two minutes; needs nginx, curl and 1.3 GiB of disk.
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

import numpy as np
from recording import record_headlines, write_result

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from pulling_device import Device
from simulated_server import sign_reference
from tiny_bundle import make_tiny_bundle

from device_client.download.pull import PullOptions
from device_client.download.transport import HttpTransport
from shared.bundle.config import DenseEntry, QuantizedEntry
from shared.bundle.layout import ImageLayout
from shared.bundle.manifest import SENSITIVE_TITLE, TRUNK_TITLE, Manifest, block_title, parse_manifest
from shared.bundle.read import read_config
from shared.bundle.signature import signature_tag
from shared.bundle.signature_artifact import MAX_SIGNATURE_MANIFEST_BYTES
from shared.bundle.write import add_manifest, add_tensors

ROUNDS = 7
BLOCKS, HIDDEN, MIDDLE, KEYS, VOCABULARY = 18, 2048, 5632, 256, 4000
CONNECTIONS = 4
CHUNK_BYTES = 16 * 1024 * 1024
NAME = "bench"
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


def main() -> None:
    """Measure in turn and record the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where to work (default: the system's temporary folder)")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--dry-run", action="store_true", help="print the figures, record nothing")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="zo-curl-", dir=arguments.folder) as name:
        folder = Path(name)
        layout, manifest = publish_large_bundle(folder / "store")
        with serving_by_nginx(layout, folder) as url:
            ways = {
                "curl": lambda: curl(url, manifest, folder / "curl"),
                "pull": lambda: pull(url, folder / "home", CONNECTIONS),
                "pull_one_connection": lambda: pull(url, folder / "home", 1),
                "command": lambda: command(url, folder / "home"),
                "curl_and_sha256sum": lambda: curl(url, manifest, folder / "curl", verifies=True),
            }
            rounds = measure(ways, arguments.rounds, [folder / "home", folder / "curl"])
    ratios = {
        way: round(statistics.median(ours["curl"] / ours[way] for ours in rounds), 3) for way in ways if way != "curl"
    }
    rates = {way: [round(manifest.size_bytes / seconds[way] / 1e9, 3) for seconds in rounds] for way in ways}
    result = {
        "bundle_bytes": manifest.size_bytes,
        "blobs": len(manifest.blobs),
        "connections": CONNECTIONS,
        "over_curl": ratios,
        "gigabytes_per_second": rates,
        "sha256_gigabytes_per_second": round(sha256_rate(), 3),
    }
    if arguments.dry_run:
        print(json.dumps(result, indent=1))
        return
    path = write_result("pull_over_curl", result)
    record_headlines(path, {"pull.over_curl": (ratios["pull"], "x")})
    print(path.read_text())


def measure(ways: dict[str, Callable[[], None]], rounds: int, folders: list[Path]) -> list[dict[str, float]]:
    """Return the seconds of each way in each round; one more round before them warms the cache."""
    measured = []
    for number in range(rounds + 1):
        seconds = {}
        names = list(ways)
        for way in names[number % len(names) :] + names[: number % len(names)]:
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)
            os.sync()  # nobody pays for what another one has left to be written
            begin = time.perf_counter()
            ways[way]()
            seconds[way] = time.perf_counter() - begin
        measured.append(seconds)
    return measured[1:]


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


def publish_large_bundle(root: Path) -> tuple[ImageLayout, Manifest]:
    """Publish the tiny bundle with blocks of another size, whose codes are random bytes."""
    tiny = make_tiny_bundle(root)
    layout = tiny.layout
    config = read_config(layout, parse_manifest(layout.read_blob(tiny.digest, max_bytes=1 << 22)))
    layers_before = parse_manifest(layout.read_blob(tiny.digest, max_bytes=1 << 22)).layers
    generator = np.random.Generator(np.random.Philox(0))
    shapes = {
        "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (KEYS, HIDDEN), "self_attn.v_proj": (KEYS, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN), "mlp.gate_proj": (MIDDLE, HIDDEN), "mlp.up_proj": (MIDDLE, HIDDEN),
        "mlp.down_proj": (HIDDEN, MIDDLE),
    }  # fmt: skip
    layers, entries, dense, sensitive = [], [], [], {}
    count = 8
    for block in range(BLOCKS):
        parts = {}
        for linear, shape in shapes.items():
            name = f"model.layers.{block}.{linear}.weight"
            parts[f"{name}.codes"] = generator.integers(0, 256, (shape[0], shape[1] // 2), np.uint8)
            parts[f"{name}.lut"] = generator.standard_normal((shape[0], 16), np.float32).astype(np.float16)
            sensitive[f"{name}.indices"] = np.arange(count, dtype=np.int32)
            sensitive[f"{name}.rank"] = np.arange(count, dtype=np.int32)
            sensitive[f"{name}.values"] = np.ones(count, np.float16)
            entries.append(
                QuantizedEntry(
                    name=name, shape=shape, blob=block_title(block), bits=4, codebook="per_row", sensitive_count=count,
                    relative_error=0, weighted_relative_error=0,
                )
            )  # fmt: skip
        for norm in ("input_layernorm", "post_attention_layernorm"):
            name = f"model.layers.{block}.{norm}.weight"
            parts[name] = np.ones(HIDDEN, np.float16)
            dense.append(DenseEntry(name=name, shape=[HIDDEN], blob=block_title(block)))
        layers.append(add_tensors(layout, block_title(block), parts))
    trunk = {
        "model.embed_tokens.weight": generator.standard_normal((VOCABULARY, HIDDEN), np.float32).astype(np.float16),
        "model.norm.weight": np.ones(HIDDEN, np.float16),
    }
    dense += [DenseEntry(name=name, shape=list(tensor.shape), blob=TRUNK_TITLE) for name, tensor in trunk.items()]
    layers += [add_tensors(layout, TRUNK_TITLE, trunk), add_tensors(layout, SENSITIVE_TITLE, sensitive)]
    layers += [layer for layer in layers_before if layer.title == "tokenizer.json"]
    changes = {"tensors": entries, "dense_parameters": dense, "chunk_bytes": CHUNK_BYTES, "chunks": {}}
    layout.tag(f"{NAME}:latest", add_manifest(layout, config.model_copy(update=changes), layers))
    sign_reference(layout, f"{NAME}:latest")
    data = layout.read_blob(layout.resolve(f"{NAME}:latest").digest, max_bytes=MAX_SIGNATURE_MANIFEST_BYTES)
    return layout, parse_manifest(data)


@contextlib.contextmanager
def serving_by_nginx(layout: ImageLayout, folder: Path) -> Iterator[str]:
    """Run nginx over a layout and give its base URL."""
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
            yield f"http://127.0.0.1:{port}"
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
