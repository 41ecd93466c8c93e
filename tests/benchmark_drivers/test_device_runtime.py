"""The benchmark of the device runtime, run with tiny shapes on a CPU: that of a GPU is the same code."""

from __future__ import annotations

import json
import math
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import device_runtime
import pytest
import torch
from imported_packages import imported_of
from runtime.checks import WrongResult, check_figures
from runtime.headlines import headlines
from runtime.peak_memory import TRAINERS, child_program, measure_trainer
from runtime.result_file import add_part
from runtime.scale import CPU, CUDA, Batch, Plan, scale_for
from runtime.workplace import Workplace

TESTS = Path(__file__).resolve().parents[1]
BENCHMARK = TESTS / "benchmarks" / "device_runtime.py"
IN_PROCESS = [part for part in device_runtime.PARTS if part != "memory"]
CPU_KEYS = {
    *(f"cpu.step_over_two_forwards.tokens_{tokens}" for tokens in (16, 64, 256, 2048)),
    *(f"cpu.float32_step_over_two_forwards.tokens_{tokens}" for tokens in (16, 64, 256)),
    *(f"cpu.pairing_gain.tokens_{tokens}" for tokens in (16, 64, 256)),
    "cpu.decode_speedup_over_bf16",
    "cpu.decode_speedup_over_int4pack",
    "cpu.step_speedup_over_mezo",
    "step.update_share",
}
GPU_KEYS = {
    f"gpu.cpu.{name}.{batch}"
    for name in ("step_over_two_forwards", "step_speedup_over_mezo")
    for batch in ("16x32", "16x512")
} | {"gpu.cpu.decode_speedup"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("device-runtime")


def place_of(plan: Plan, folder: Path) -> Workplace:
    return Workplace(scale_for("tiny", plan), torch.device("cpu"), folder, "reference")


def measured(plan: Plan, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    results = folder / plan
    path = device_runtime.measure(place_of(plan, folder), IN_PROCESS, results, "tiny", [])
    return json.loads(path.read_text()), json.loads((results / "summary.json").read_text())


@pytest.mark.parametrize(("plan", "keys"), [("cpu", CPU_KEYS), ("cuda", GPU_KEYS)])
def test_every_part_is_measured_and_its_headlines_are_kept(plan: Plan, keys: set[str], folder: Path) -> None:
    result, summary = measured(plan, folder)
    assert list(result["parts"]) == sorted(IN_PROCESS)
    assert all(part["measured"]["date"] == result["date"] for part in result["parts"].values())
    assert keys <= summary.keys()
    for key in keys:
        assert math.isfinite(summary[key]["value"])
        assert summary[key]["value"] > 0
        assert summary[key]["source"] == f"device_runtime_tiny_{plan}_cpu.json"
    assert all(entry["value"] is True for key, entry in summary.items() if "paired_equals_single" in key)
    for name in ("pairing_gain", "paired_equals_single"):  # of the batches that the product pairs, and no other
        measured_pairings = {key for key in summary if name in key}
        assert measured_pairings == {key.replace("pairing_gain", name) for key in keys if "pairing_gain" in key}


@pytest.mark.parametrize("trainer", TRAINERS)
def test_the_peak_of_every_trainer_is_measured(trainer: Any, folder: Path) -> None:
    found = measure_trainer(place_of("cuda", folder), trainer, Batch(2, 8))
    assert found["step_seconds"] > 0
    # Linux keeps the high-water mark to within some pages: it may read lower than a moment before.
    assert found["peak_gib"] >= found["before_gib"] - 1e-3 > 0


def test_a_peak_is_measured_in_a_process_of_its_own(folder: Path) -> None:
    words = ["--shapes=tiny", "--plan=cuda", f"--folder={folder}", "--backend=reference"]
    command = [*child_program(BENCHMARK, words), "zo", "2", "8", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["points_at_once"] == 1
    assert 0 < found["before_gib"] <= found["peak_gib"] < 2


def test_our_own_peak_and_its_share_of_each_peers_are_headlines() -> None:
    runs = {"zo": 4.0, "mezo": 16.0, "lora_checkpointed": 20.0, "qlora_checkpointed": 8.0}
    found = {"16x512": {name: {"peak_gib": peak} for name, peak in runs.items()}}
    scale = replace(CUDA, peaks=tuple(peak for peak in CUDA.peaks if peak[1].columns == 512))
    assert headlines("memory", found, scale, "h100") == {
        "gpu.h100.peak_gib.16x512": (4.0, "GiB"),
        "gpu.h100.peak_over_mezo.16x512": (0.25, "ratio"),
        "gpu.h100.peak_over_lora_checkpointed.16x512": (0.2, "ratio"),
        "gpu.h100.peak_over_qlora_checkpointed.16x512": (0.5, "ratio"),
    }


def test_a_trainer_that_found_no_room_has_no_headline() -> None:
    runs = {"zo": {"peak_gib": 4.0}, "mezo": {"peak_gib": 16.0}, "qlora": {"peak_gib": 8.0}}
    found = {"16x16": runs | {"lora": {"out_of_memory": "CUDA out of memory."}}}
    assert headlines("memory", found, CPU, "cpu").keys() == {"cpu.peak_over_mezo.16x16", "cpu.peak_over_qlora.16x16"}


def test_parts_measured_later_leave_the_others_as_they_are(tmp_path: Path) -> None:
    add_part(tmp_path, "result", "step", {"figure": 1})
    add_part(tmp_path, "result", "decode", {"figure": 2})
    parts = json.loads(add_part(tmp_path, "result", "step", {"figure": 3}).read_text())["parts"]
    assert {name: part["figure"] for name, part in parts.items()} == {"step": 3, "decode": 2}


def test_nothing_is_timed_where_a_backend_computes_something_else(folder: Path) -> None:
    place = place_of("cpu", folder)
    assert check_figures(place)["tolerance"] == 4
    with pytest.raises(WrongResult, match="off by"):
        check_figures(place, tolerance=0.0)


def test_it_needs_only_what_a_gpu_machine_has() -> None:
    unwanted = "datasets fastapi sqlalchemy accelerate ray sklearn uvicorn pydantic_settings matplotlib cloud_service"
    assert imported_of(BENCHMARK, unwanted) == []
