"""Benchmarks are programs: each finds what it needs without pytest's paths."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.mark.parametrize("name", ["device_runtime", "figures", "memory_plan_error", "prepare_7b_gpu", "service_fuzz"])
def test_a_benchmark_starts_by_its_path_alone(tmp_path: Path, name: str) -> None:
    plain = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    started = subprocess.run(
        [sys.executable, BENCHMARKS / f"{name}.py", "--help"], cwd=tmp_path, env=plain, capture_output=True, text=True
    )

    assert (started.returncode, started.stderr) == (0, "")
    assert "--help" in started.stdout
