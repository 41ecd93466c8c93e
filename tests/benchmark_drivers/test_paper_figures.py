"""Figures 1 and 9, measured with tiny shapes, and drawn from results that are written down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import figures
import pytest
import torch
from runtime.scale import scale_for
from runtime.sparse_operations import crossover
from runtime.workplace import Workplace

PNG_BEGIN = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("figures")
    place = Workplace(scale_for("tiny", "cpu"), torch.device("cpu"), folder, "reference")
    return figures.measure(place, "tiny", folder / "results")


def test_each_way_is_measured_where_it_can_compete(measured: Path) -> None:
    tokens = json.loads(measured.read_text())["parts"]["figure_9"]["tokens"]
    assert {count: set(one) - {"sparse_add_is_faster"} for count, one in tokens.items()} == {
        "1": {"sparse_add", "sparse_addmm_csr", "sparse_addmm_fused"},
        "16": {"sparse_add", "sparse_addmm_csr", "sparse_addmm_fused"},
        "512": {"sparse_add", "sparse_addmm_csr"},
    }
    assert all(one["sparse_add"]["median_ms"] > 0 for one in tokens.values())


def test_the_faster_implementation_of_each_choice_counts(measured: Path) -> None:
    found = json.loads(measured.read_text())["parts"]["figure_1"]
    for panel in [*found["training"].values(), found["inference"]]:
        assert panel["lowest"].keys() == {"sensitive_0.1", "random_10", "all_16_bit"}
        for choice, lowest in panel["lowest"].items():
            times = [one["median_ms"] for name, one in panel["times"].items() if name.startswith(choice)]
            assert lowest["ms_per_block"] * panel["blocks"] == pytest.approx(min(times))


def test_both_figures_are_drawn_as_svg_and_png(measured: Path) -> None:
    pictures = figures.draw(measured)
    assert [picture.name for picture in pictures] == ["figure_9.svg", "figure_9.png", "figure_1.svg", "figure_1.png"]
    for picture in pictures:
        content = picture.read_bytes()
        assert content.startswith(PNG_BEGIN) if picture.suffix == ".png" else b"<svg" in content


def ways(**milliseconds: float) -> dict[str, Any]:
    fastest = min(milliseconds, key=lambda name: milliseconds[name])
    return {"sparse_add_is_faster": fastest == "add"}


def test_the_crossover_is_where_adding_stays_the_fastest() -> None:
    noisy = {"1": ways(add=2, mm=3), "2": ways(add=3, mm=2), "64": ways(add=2, mm=3), "128": ways(add=2, mm=9)}
    assert crossover(noisy) == 64
    assert crossover({"1": ways(add=3, mm=2), "2": ways(add=3, mm=2)}) is None
