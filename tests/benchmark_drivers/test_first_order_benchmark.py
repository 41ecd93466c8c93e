"""The driver of the first-order benchmark with a tiny model."""

from __future__ import annotations

from pathlib import Path

import first_order
import pytest
from first_order import Case, compare, headlines, step_over_two_bare_forwards
from peers.seven_b_shapes import shaped_bundle
from random_network import TINY

TINY_WORDS = TINY | {"vocab_size": 300}


def test_a_process_of_its_own_is_compared_with_its_plan(tmp_path: Path, kernels: Path) -> None:
    bundle = shaped_bundle(tmp_path, TINY_WORDS)

    found = [compare(Case(gradient, 2, 8), bundle, tmp_path, kernels) for gradient in first_order.BOTH]

    for case in found:
        assert case["peak_bytes"] >= case["loading_peak_bytes"] > 200 << 20
        assert case["planned_bytes"] == sum(case["planned_parts"].values())
        assert abs(case["error_percent"]) < 10
    assert found[1]["planned_bytes"] > found[0]["planned_bytes"]


def test_steps_are_timed_beside_bare_forward_passes(tmp_path: Path, kernels: Path) -> None:
    bundle = shaped_bundle(tmp_path, TINY_WORDS | {"max_position_embeddings": 64})

    seconds = step_over_two_bare_forwards(bundle, kernels, rounds=1)

    assert seconds.keys() == {"two_bare_forwards", "zeroth-order", "first-order"}
    assert all(value > 0 for value in seconds.values())


def test_headlines_compare_the_first_shape_and_name_the_worst_plan() -> None:
    cases = [
        {"gradient": gradient, "rows": rows, "columns": columns, "peak_bytes": peak, "error_percent": error}
        for gradient, rows, columns, peak, error in (
            ("zeroth-order", 16, 32, 100, 50.0),
            ("first-order", 16, 32, 120, -7.0),
            ("first-order", 1, 512, 900, 3.0),
        )
    ]
    found = headlines(cases, {"two_bare_forwards": 2.0, "first-order": 4.0})
    assert {key: value for key, (value, _) in found.items()} == {
        "tune.first_order_peak_over_zo": pytest.approx(1.2),
        "plan.first_order_error_percent": pytest.approx(7.0),
        "tune.seconds_per_step.first_order": pytest.approx(2.0),
    }
