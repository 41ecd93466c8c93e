"""Where the Fisher pass runs: settings that travel from the command line or the service to the pipeline.

None of them changes the bundle, but threads and accelerators: other arithmetic gives sums with other last bits.
Imports nothing heavy. Knows nothing about how a pass is run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class LauncherChoice:
    """A launcher by name, and what Ray needs to know.

    Attributes:
        kind: ``local``: in the preparation's own process. ``ray``: calibration shards as tasks on a Ray cluster.
        ray_address: Of a running cluster; None starts one on this machine.
        ray_workers: Tasks that run at the same time.
        ray_worker_threads: Processor threads of each.
        ray_worker_gpus: Accelerators of each; 0 computes on the processor.
    """

    kind: Literal["local", "ray"] = "local"
    ray_address: str | None = None
    ray_workers: int = 1
    ray_worker_threads: int = 1
    ray_worker_gpus: int = 0
