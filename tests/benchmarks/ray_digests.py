"""Prepares one model on Ray clusters of 1, 2 and 4 worker processes, and compares mask and bundle digests.

    ZO_DATA_DIR=../shared/data python tests/benchmarks/ray_digests.py [--model stories260K-hf]

One run without Ray; clusters of 1, 2 and 4 workers on this machine; and a cluster of 2 one of whose workers is killed
by SIGKILL while it computes a shard. Every process uses one thread. Equal means: the blob of sensitive values (the
mask, its ranks and values) and the manifest have the same digest in all five. Writes results/ray_digests.json and the
headline ``ray.digests_equal``. Takes about five minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from recording import record_headlines, write_result

from cloud_service.pipeline.fisher.launchers.local import FisherLauncher, LocalLauncher
from cloud_service.pipeline.fisher.launchers.ray_cluster import RayLauncher
from cloud_service.pipeline.opening.planned_model import Means
from cloud_service.pipeline.prepare import prepare
from cloud_service.progress import SilentProgress
from cloud_service.sources import SourcePolicy
from shared.api import PrepareRequest, Stage
from shared.bundle.layout import ImageLayout
from shared.bundle.manifest import SENSITIVE_TITLE
from shared.bundle.read import read_bundle

DATA = Path(os.environ.get("ZO_DATA_DIR", Path(__file__).resolve().parents[3] / "shared" / "data")).resolve()
SEQUENCES, TOKENS = 64, 256


class KillOneWorker(SilentProgress):
    """Kills the first worker that is seen at work once a quarter of the sequences is done."""

    def __init__(self) -> None:
        self.killed = 0
        self._stage: Stage | None = None

    def stage(self, stage: Stage, *, total: int = 0, unit: str = "") -> None:
        self._stage = stage

    def advance(self, done: int) -> None:
        if self.killed or self._stage is not Stage.CALIBRATING or done < SEQUENCES // 4:
            return
        for child in psutil.Process().children(recursive=True):
            if "_sum_blocks" in child.name():
                os.kill(child.pid, signal.SIGKILL)
                self.killed = child.pid
                return


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="picollama-sentiment")
    name = parser.parse_args().model
    torch.set_num_threads(1)
    killer = KillOneWorker()
    runs = {"one process": run(name, LocalLauncher(), SilentProgress())}
    for workers in (1, 2, 4):
        runs[f"ray, {workers} workers"] = run(name, RayLauncher(workers=workers), SilentProgress())
    runs["ray, 2 workers, one killed"] = run(name, RayLauncher(workers=2), killer)
    first = runs["one process"]
    is_equal = all(run[key] == first[key] for run in runs.values() for key in ("sensitive_digest", "bundle_digest"))
    result = {
        "model": name, "sequences": SEQUENCES, "tokens": TOKENS, "is_equal": is_equal,
        "was_a_worker_killed": bool(killer.killed), "runs": runs,
    }  # fmt: skip
    path = write_result("ray_digests", result)
    record_headlines(path, {"ray.digests_equal": (is_equal and bool(killer.killed), "bool")})
    print(json.dumps(result, indent=1))
    return 0 if is_equal and killer.killed else 1


def run(model: str, launcher: FisherLauncher, progress: SilentProgress) -> dict[str, Any]:
    request = PrepareRequest.model_validate(
        {
            "model": str(DATA / "models" / model),
            "calibration": {
                "text": str(DATA / "text" / "c4" / "c4-en-1000.jsonl"),
                "sequences": SEQUENCES,
                "tokens_per_sequence": TOKENS,
            },
            "evaluation": {"documents": 10},
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        layout = ImageLayout.create(Path(folder) / "store")
        started = time.monotonic()
        made = prepare(
            request,
            workspace=Path(folder) / "work",
            layout=layout,
            progress=progress,
            sources=SourcePolicy(allow_any_local=True),
            means=Means(launcher, device="cpu"),
        )
        seconds = time.monotonic() - started
        bundle = read_bundle(layout, made.manifest.digest)
        sensitive = next(layer.digest for layer in bundle.manifest.layers if layer.title == SENSITIVE_TITLE)
    return {"sensitive_digest": sensitive, "bundle_digest": made.manifest.digest, "seconds": round(seconds, 1)}


if __name__ == "__main__":
    raise SystemExit(main())
