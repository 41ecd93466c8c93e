"""The cases of the benchmark of memory plans, and its driver with a tiny model."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import memory_plan_error
import pytest
import torch
from memory_plan_error import Case, all_cases, compare, make_steps
from peers.seven_b_shapes import shaped_bundle
from random_network import TINY

from device_client.model.backends.choose import REFERENCE
from device_client.model.loader import load_model
from device_client.tuning.perturbations import drawing_of

TINY_WORDS = TINY | {"vocab_size": 300}


def test_small_models_run_every_combination_and_large_ones_every_pair() -> None:
    cases = list(all_cases())

    assert len(cases) == len(set(cases)) == (8 + 4 * 4) + 5 * 4
    large = [(case.backend, case.dtype, case.points) for case in cases if case.model != "picollama"]
    for one, other in combinations(range(3), 2):
        assert len({(choice[one], choice[other]) for choice in large}) == 4


def test_two_points_are_measured_only_where_the_product_runs_them_side_by_side() -> None:
    shapes = {points: {(c.rows, c.columns) for c in all_cases() if c.points == points} for points in (1, 2)}

    assert shapes[2] == {(16, 16)}
    assert shapes[1] == shapes[2] | {(16, 32), (4, 128), (16, 128), (4, 512)}


@pytest.mark.parametrize("points", [1, 2])
def test_steps_move_through_every_point_of_the_case(tmp_path: Path, points: int) -> None:
    model = load_model(shaped_bundle(tmp_path, TINY_WORDS), device="cpu")

    make_steps(model, Case("tiny", 2, 8, "reference", "float32", points), drawing_of("gaussian", REFERENCE))

    assert model.runtime.values.points == points
    assert not torch.equal(model.runtime.values.of(slice(None), 0), model.initial_theta())


def test_a_process_of_its_own_is_compared_with_its_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(memory_plan_error.MODELS, "tiny", TINY_WORDS)

    found = compare(Case("tiny", 2, 8, "reference", "float32", 2), tmp_path, threads=1)

    assert found["peak_bytes"] >= found["loading_peak_bytes"] > 200 << 20
    assert found["planned_bytes"] == sum(found["planned_parts"].values())
    expected = 100 * (found["planned_bytes"] - found["peak_bytes"]) / found["peak_bytes"]
    assert found["error_percent"] == pytest.approx(expected)
    assert abs(found["error_percent"]) < 10
