"""Subjects of an export without a store: a bundle, and values that stand for a run's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from device_client.export.subject import Subject, TunedRun
from device_client.planning.methods import MethodName, tuned_part
from device_client.tuning.run_directory import RunDirectory
from shared.bundle.read import Bundle

SETTINGS: dict[str, Any] = {"steps": 12, "seed": 0, "objective": "tokens"}


def published(bundle: Bundle) -> Subject:
    """Return the bundle as it was published."""
    return Subject(bundle, "tests/random:latest", None)


def tuned(
    bundle: Bundle,
    folder: Path,
    method: MethodName = "sparse",
    blocks: str = "all",
    config: dict[str, Any] | None = None,
) -> Subject:
    """Return the bundle with drawn values in the place of a run's; ``folder`` becomes the run's."""
    part = tuned_part(bundle.config, method, blocks)
    theta = torch.randn(part.value_count, generator=torch.Generator().manual_seed(5)) * 0.1
    run = RunDirectory(folder, {"method": method} | {key: str(value) for key, value in part.method.recorded.items()})
    run.create()
    fields = {
        "bundle_digest": bundle.digest,
        "settings": SETTINGS | {"method": method, "blocks": part.blocks.name} | dict(part.method.recorded),
        "rendering": {},
        "max_tokens": None,
    } | (config or {})
    run.write_json("config.json", fields)
    run.write_theta("best.safetensors", theta, 12)
    return Subject(bundle, "tests/random:latest", TunedRun(run, fields, part, theta))
