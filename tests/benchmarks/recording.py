"""Keeps what benchmarks measure: full results as JSON beside this file, headline figures in ``summary.json``.

A headline is ``{key: {value, unit, machine, date, source}}``; only benchmarks call ``record_headlines``.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def machine_name() -> str:
    """CPU model, core count and, where there is one, the GPU."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    name = f"{model}, {os.cpu_count()} cores"
    try:
        import torch

        if torch.cuda.is_available():
            name += f", {torch.cuda.get_device_name()}"
    except ImportError:
        pass
    return name


def write_result(name: str, result: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Write ``<folder>/<name>.json`` with machine and date added, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    stamped = {"machine": machine_name(), "date": datetime.date.today().isoformat(), **result}
    path.write_text(json.dumps(stamped, indent=1, sort_keys=True) + "\n")
    return path


def record_headlines(source: Path, figures: dict[str, tuple[float | int | bool, str]]) -> None:
    """Merge figures (key → value, unit) into the ``summary.json`` beside the result file they come from."""
    path = source.parent / "summary.json"
    summary = json.loads(path.read_text()) if path.exists() else {}
    for key, (value, unit) in figures.items():
        summary[key] = {
            "value": value,
            "unit": unit,
            "machine": machine_name(),
            "date": datetime.date.today().isoformat(),
            "source": source.name,
        }
    path.write_text(json.dumps(dict(sorted(summary.items())), indent=1) + "\n")
