"""The GPU benchmark's steps, run on a CPU with tiny shapes."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch
from imported_packages import imported_of
from random_network import TINY

BENCHMARK = Path(__file__).resolve().parents[1] / "benchmarks" / "prepare_7b_gpu.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    specification = importlib.util.spec_from_file_location("prepare_7b_gpu", BENCHMARK)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_every_figure_of_the_benchmark_is_measured(benchmark: ModuleType) -> None:
    result = benchmark.measure(TINY, torch.device("cpu"), 2, 60.0)
    host = result["budgets"]["host"]
    assert host["seconds_per_sequence"] > 0
    assert host["measured_peak_bytes"] > 4 * result["elements"]
    assert result["quantize_measured_share"] == 1.0
    assert result["quantized_weights"] == 4 * (4 * 64 * 64 + 3 * 64 * 172)
    assert result["bundle_bytes_written"] > 0
    figures = benchmark.headlines(result, "gpu.cpu.prepare_tiny")
    assert all(math.isfinite(value) and value > 0 for value, _ in figures.values())


def test_it_needs_only_what_a_gpu_machine_has() -> None:
    unwanted = "datasets fastapi sqlalchemy accelerate ray sklearn uvicorn pydantic_settings"
    assert imported_of(BENCHMARK, unwanted) == []
