"""The benchmark of a 7B model through the whole product: all of its stages with tiny shapes, and continued."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARK = Path(__file__).resolve().parents[1] / "benchmarks" / "seven_b_whole.py"
GIB = 1 << 30


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    specification = importlib.util.spec_from_file_location("seven_b_whole", BENCHMARK)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["seven_b_whole"] = module
    specification.loader.exec_module(module)
    return module


def setting(benchmark: ModuleType, work: Path, **changes: Any) -> Any:
    config = benchmark.LLAMA_2_7B | benchmark.TINY
    defaults = {"prepare_limit": 20 * GIB, "prepare_budget": 20 * GIB, "device_limit": 8 * GIB}
    return benchmark.Setting(work, config, limit_kind="address-space", backend="reference", **(defaults | changes))


@pytest.fixture(scope="module")
def measured(benchmark: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder and the figures of one run."""
    work = tmp_path_factory.mktemp("seven-b")
    return work, benchmark.measure(setting(benchmark, work), lambda _: None)


def test_every_stage_is_run_and_held_against_its_plan(
    benchmark: ModuleType, measured: tuple[Path, dict[str, Any]]
) -> None:
    _, result = measured
    stages = result["prepare"]["stages"]
    assert {"calibrating", "selecting", "quantizing", "evaluating"} <= stages.keys()
    assert all(stage["planned"] > 0 and stage["measured"] > 0 for stage in stages.values())
    assert result["pull"]["is_what_was_prepared"]
    assert result["tune"]["plan"]["total_bytes"] > 0
    assert (result["tune"]["plan"]["rows"], result["tune"]["plan"]["columns"]) == (16, 32)
    assert result["tune"]["result"]["steps_done"] == 2
    assert result["tune"]["result"]["truncated_rows"] == 16  # each row has 32 tokens
    assert result["generate"]["answer"]["new_tokens"] <= 8
    assert all(result[stage]["limit_bytes"] == 8 * GIB for stage in ("pull", "tune", "generate"))
    figures = benchmark.headlines(result)
    assert figures.keys() == {
        "seven_b.prepare_peak_gib", "seven_b.tune_peak_gib", "seven_b.bundle_gib", "seven_b.seconds_per_step",
    }  # fmt: skip
    assert all(math.isfinite(value) and value > 0 for value, _ in figures.values())


def test_what_is_done_is_not_done_again(benchmark: ModuleType, measured: tuple[Path, dict[str, Any]]) -> None:
    work, result = measured
    state = json.loads((work / "state.json").read_text())
    del state["generate"]
    (work / "state.json").write_text(json.dumps(state))
    told: list[str] = []
    again = benchmark.measure(setting(benchmark, work), told.append)
    assert [line.split()[0] for line in told if " begins" in line] == ["generate"]
    assert again["generate"]["answer"]["text"] == result["generate"]["answer"]["text"]
    assert again["tune"] == result["tune"]


def test_a_process_that_exceeds_its_hard_limit_ends(benchmark: ModuleType, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import json; print(json.dumps(len(b'x' * (1 << 29))))"]
    run, answer = benchmark.run_limited(
        command, tmp_path / "roomy.log", limit_bytes=2 * GIB, limit_kind="address-space"
    )
    assert answer == 1 << 29
    assert run.peak_bytes > 1 << 29
    with pytest.raises(SystemExit, match=r"see .*tight\.log"):
        benchmark.run_limited(command, tmp_path / "tight.log", limit_bytes=1 << 28, limit_kind="address-space")
    assert "MemoryError" in (tmp_path / "tight.log").read_text()
