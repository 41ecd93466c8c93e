"""How many bytes a cut and corrupted download fetches again: ideally the bad chunks, and nothing else.

A bundle with a trunk of eight 16 MiB chunks is served over HTTP and pulled by the real ``zo-device`` process:

1. the process is killed with SIGKILL when four chunks have arrived, and two of them are damaged on the disk;
2. pulling again, two other chunks are damaged in transit, and one connection dies in the middle of a chunk.

    refetched = bytes of layers that the server sent − bytes of layers
    refetched_bytes_over_chunk = refetched / (bad chunks · chunk bytes)          1.0 is ideal

All bad chunks are of full length; the trunk's last chunk, which is shorter, is not among them.

Takes about ten seconds and 400 MB of disk. Run: python tests/benchmarks/pull_refetch.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "support")]

from recording import record_headlines, write_result  # noqa: E402
from simulated_server import (  # noqa: E402
    Answer,
    Request,
    SimulatedServer,
    break_after,
    flip_byte,
    is_blob,
    serving,
    sign_reference,
)
from tiny_bundle import make_tiny_bundle  # noqa: E402

from shared.bundle.config import DenseEntry  # noqa: E402
from shared.bundle.digest import CHUNK_BYTES  # noqa: E402
from shared.bundle.layout import ImageLayout  # noqa: E402
from shared.bundle.manifest import TRUNK_TITLE, Descriptor, Manifest, parse_manifest  # noqa: E402
from shared.bundle.read import read_config  # noqa: E402
from shared.bundle.write import add_manifest, add_tensors  # noqa: E402

VOCABULARY, HIDDEN = 64_000, 1024
CHUNKS_BEFORE_KILL = 4
BAD_ON_DISK = (1, 2)
BAD_IN_TRANSIT = (4, 5)
CUT_IN_CHUNK = 6


def main() -> None:
    """Measure, write the result, record the headline."""
    with tempfile.TemporaryDirectory() as folder:
        layout, manifest = publish_big_bundle(Path(folder) / "published")
        trunk = manifest.layer(TRUNK_TITLE)
        assert trunk is not None
        server = SimulatedServer(layout)
        home = Path(folder) / "device"
        with serving(server) as address:
            sent_before_kill = pull_and_kill(server, address, home, trunk)
            damage_on_disk(home, trunk)
            server.misbehave(is_blob(trunk.digest, begin=CUT_IN_CHUNK * CHUNK_BYTES), break_after(5_000_000))
            for chunk in BAD_IN_TRANSIT:
                server.misbehave(is_blob(trunk.digest, begin=chunk * CHUNK_BYTES), flip_byte(chunk * 1000))
            begin = time.perf_counter()
            pulled = pull(address, home)
            resume_seconds = time.perf_counter() - begin
        layer_bytes = sum(layer.size for layer in manifest.layers)
        refetched = server.layer_bytes_sent() - layer_bytes
        bad_chunks = len(BAD_ON_DISK) + len(BAD_IN_TRANSIT)
        over_chunk = refetched / (bad_chunks * CHUNK_BYTES)
        path = write_result(
            "pull_refetch",
            {
                "layer_bytes": layer_bytes,
                "trunk_bytes": trunk.size,
                "chunk_bytes": CHUNK_BYTES,
                "chunks_damaged_on_disk": len(BAD_ON_DISK),
                "chunks_damaged_in_transit": len(BAD_IN_TRANSIT),
                "connections_cut": 1,
                "bytes_sent_before_kill": sent_before_kill,
                "bytes_sent_after_kill": server.layer_bytes_sent() - sent_before_kill,
                "bytes_received_after_kill": pulled["fetched_bytes"],
                "refetched_bytes": refetched,
                "refetched_bytes_over_chunk": over_chunk,
                "resume_seconds": resume_seconds,
                "digest": pulled["digest"],
            },
        )
        record_headlines(
            path, {"pull.refetched_bytes_over_chunk": (over_chunk, "refetched bytes / bytes of bad chunks")}
        )
        sys.stdout.write(path.read_text())


def publish_big_bundle(root: Path) -> tuple[ImageLayout, Manifest]:
    """Publish the tiny bundle with an embedding of random weights so large that the trunk has eight chunks."""
    tiny = make_tiny_bundle(root)
    layout = tiny.layout
    manifest = parse_manifest(layout.read_blob(tiny.digest, max_bytes=1 << 22))
    config = read_config(layout, manifest)
    generator = np.random.Generator(np.random.Philox(0))
    trunk = {
        "model.embed_tokens.weight": generator.standard_normal((VOCABULARY, HIDDEN), np.float32).astype(np.float16),
        "model.norm.weight": np.ones(HIDDEN, np.float16),
    }
    shapes = {name: list(tensor.shape) for name, tensor in trunk.items()}
    dense = [
        DenseEntry(name=entry.name, shape=shapes.get(entry.name, entry.shape), blob=entry.blob)
        for entry in config.dense_parameters
    ]
    layers = [
        add_tensors(layout, TRUNK_TITLE, trunk) if layer.title == TRUNK_TITLE else layer for layer in manifest.layers
    ]
    config = config.model_copy(update={"dense_parameters": dense, "chunk_bytes": CHUNK_BYTES, "chunks": {}})
    layout.tag("big:latest", add_manifest(layout, config, layers))
    sign_reference(layout, "big:latest")
    data = layout.read_blob(layout.resolve("big:latest").digest, max_bytes=1 << 22)
    return layout, parse_manifest(data)


def pull_and_kill(server: SimulatedServer, address: str, home: Path, trunk: Descriptor) -> int:
    """Kill a pull as soon as it asks for the chunk after ``CHUNKS_BEFORE_KILL``; return the layer bytes sent so far."""
    reached, is_dead = threading.Event(), threading.Event()

    def hold(request: Request, answer: Answer) -> Answer:
        reached.set()
        is_dead.wait(60)
        return Answer(503)

    server.misbehave(is_blob(trunk.digest, begin=CHUNKS_BEFORE_KILL * CHUNK_BYTES), hold)
    process = start(address, home)
    if not reached.wait(60):
        raise SystemExit("the download never reached the chunk to be killed at")
    process.kill()
    process.communicate()
    is_dead.set()
    return server.layer_bytes_sent()


def damage_on_disk(home: Path, trunk: Descriptor) -> None:
    """Flip one byte in each of the chunks that are to be bad."""
    partial = home / "bundles" / "partial" / f"{trunk.digest.removeprefix('sha256:')}.part"
    with partial.open("r+b") as file:
        for chunk in BAD_ON_DISK:
            file.seek(chunk * CHUNK_BYTES + 12345)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 0xFF]))


def pull(address: str, home: Path) -> dict[str, Any]:
    """Pull to the end and return what the command says."""
    out, told = (process := start(address, home)).communicate(timeout=300)
    if process.returncode:
        raise SystemExit(f"the pull ended with exit code {process.returncode}:\n{told}")
    return dict(json.loads(out))


def start(address: str, home: Path) -> subprocess.Popen[str]:
    """Start ``zo-device pull`` over one connection, so that chunks arrive in order."""
    code = "import sys; from device_client.cli import main; sys.exit(main())"
    words = ["--json", "pull", f"{address}/big", "--connections", "1"]
    return subprocess.Popen(
        [sys.executable, "-c", code, *words],
        env={"PATH": os.environ.get("PATH", ""), "ZO_DEVICE_HOME": str(home)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


if __name__ == "__main__":
    main()
