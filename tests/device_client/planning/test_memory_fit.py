"""Rows and points that a budget allows."""

from __future__ import annotations

import pytest
from tiny_bundle import TinyBundle

from device_client.planning.memory_fit import MemoryFit, fit_to_memory, point_counts, side_by_side
from device_client.planning.memory_plan import MemoryPlan, plan_memory
from device_client.planning.workload import Workload
from shared.bundle.config import BundleConfig
from shared.bundle.read import read_bundle
from shared.errors import ResourceError
from shared.tasks.examples import Example


@pytest.fixture(scope="module")
def config(tiny_bundle: TinyBundle) -> BundleConfig:
    return read_bundle(tiny_bundle.layout, tiny_bundle.digest).config


def planned(config: BundleConfig, rows: int, points: int, queries: int = 3) -> MemoryPlan:
    return plan_memory(config, Workload(rows, 16, points=points, queries=queries), device_type="cpu")


def fitted(config: BundleConfig, budget: int | None, **options: int) -> MemoryFit:
    return fit_to_memory(config, Workload(16, 16, queries=3), budget_bytes=budget, device_type="cpu", **options)


def test_a_roomy_budget_runs_both_signs_of_all_queries_and_keeps_decoded_weights(config: BundleConfig) -> None:
    fit = fitted(config, 1 << 30)

    assert (fit.micro_batch_rows, fit.points_at_once) == (16, 6)
    assert fit.plan == planned(config, 16, 6)
    assert fit.decoded_cache_bytes == (1 << 30) * 19 // 20 - fit.plan.total_bytes


@pytest.mark.parametrize(("points", "fewer"), [(6, 2), (2, 1)])
def test_points_shrink_before_rows_do(config: BundleConfig, points: int, fewer: int) -> None:
    budget = planned(config, 16, points).total_bytes

    assert fitted(config, budget).points_at_once == points
    tight = fitted(config, budget - 1)
    assert (tight.micro_batch_rows, tight.points_at_once, tight.decoded_cache_bytes) == (16, fewer, 0)


@pytest.mark.parametrize("queries", [0, 1, 3])
def test_rows_do_not_depend_on_points(config: BundleConfig, queries: int) -> None:
    budget = planned(config, 5, 1, queries).total_bytes

    fit = fit_to_memory(config, Workload(16, 16, points=4, queries=queries), budget_bytes=budget, device_type="cpu")

    assert (fit.micro_batch_rows, fit.points_at_once) == (5, 1)


def test_the_rows_that_were_asked_for_stay_and_points_fit_beside_them(config: BundleConfig) -> None:
    budget = planned(config, 3, 6).total_bytes

    assert fitted(config, budget, micro_batch_rows=3).points_at_once == 6
    assert fitted(config, budget, micro_batch_rows=9).points_at_once == 2
    with pytest.raises(ResourceError, match="for 64 × 16 tokens"):
        fitted(config, budget, micro_batch_rows=64)


def test_no_budget_limits_nothing_and_keeps_nothing_decoded(config: BundleConfig) -> None:
    fit = fitted(config, None)
    asked = fitted(config, None, micro_batch_rows=2)

    assert (fit.micro_batch_rows, fit.points_at_once, fit.decoded_cache_bytes) == (16, 6, 0)
    assert (asked.micro_batch_rows, asked.points_at_once) == (2, 6)


def test_the_format_and_the_backend_are_those_asked_for(config: BundleConfig) -> None:
    most = Workload(16, 128)
    single, half = (
        fit_to_memory(
            config, most, budget_bytes=None, device_type="cpu", value_bytes=value_bytes, backend="reference"
        ).plan
        for value_bytes in (None, 2)
    )

    assert single.backend == half.backend == "reference"
    assert single.parts["unquantised parameters"] == 2 * half.parts["unquantised parameters"]


@pytest.mark.parametrize(("queries", "counts"), [(0, (1,)), (1, (2, 1)), (2, (4, 2, 1)), (8, (16, 2, 1))])
def test_points_are_both_signs_of_all_queries_or_of_one(queries: int, counts: tuple[int, ...]) -> None:
    assert point_counts(queries) == counts


def test_all_sequences_of_a_batch_are_as_long_as_the_longest() -> None:
    short = Example((1, 2), ((3,), (4,)), 0, "")
    long = Example((1, 2, 3), ((4,), (5, 6, 7), (8,)), 1, "")

    assert side_by_side([short], 4, queries=2) == Workload(4, 3, queries=2)
    assert side_by_side([short, long], 4) == Workload(12, 6, 3, queries=0)


def test_passes_too_long_to_pair_take_the_memory_of_one_point(config: BundleConfig) -> None:
    """16 × 128 tokens run one point after the other; shorter ones, up to 256 tokens a point, side by side."""
    long = Workload(16, 128, queries=1)
    alone = plan_memory(config, long, device_type="cpu")
    paired = plan_memory(config, Workload(2, 128, points=2, queries=1), device_type="cpu")

    fit = fit_to_memory(config, long, budget_bytes=8 << 30, device_type="cpu")

    assert (fit.micro_batch_rows, fit.points_at_once) == (16, 2)
    assert fit.plan.total_bytes == max(alone.total_bytes, paired.total_bytes)


def test_one_row_too_long_to_pair_runs_one_point_at_a_time(config: BundleConfig) -> None:
    fit = fit_to_memory(config, Workload(4, 257, queries=1), budget_bytes=8 << 30, device_type="cpu")

    assert fit.points_at_once == 1
