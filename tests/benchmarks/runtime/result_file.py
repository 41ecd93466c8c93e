"""A result file whose parts are measured at different times: each keeps its own date, machine and versions."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from recording import machine_name, write_result


def add_part(folder: Path, name: str, part: str, found: dict[str, Any]) -> Path:
    """Put one part's figures into ``<folder>/<name>.json``, in the place of older ones of the same part."""
    path = folder / f"{name}.json"
    parts = json.loads(path.read_text())["parts"] if path.exists() else {}
    parts[part] = {"measured": _circumstances(), **found}
    return write_result(name, {"parts": parts}, folder)


def _circumstances() -> dict[str, str | int]:
    return {
        "machine": machine_name(),
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
    }
