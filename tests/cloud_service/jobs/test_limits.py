"""What a job may use, worked by hand."""

from __future__ import annotations

import pytest

from cloud_service.jobs.limit_watch import LimitWatch
from cloud_service.jobs.limits import (
    STAGE_SECONDS,
    JobLimits,
    MessageAllowance,
    Usage,
    base_memory,
    memory_ceiling,
    planned_memory,
)
from shared.api import Stage

GIB = 1 << 30


def test_the_most_is_the_setting_or_the_machine_but_a_reserve() -> None:
    assert memory_ceiling(64 * GIB, None) == 60 * GIB
    assert memory_ceiling(8 * GIB, None) == 7 * GIB
    assert memory_ceiling(2 * GIB, None) == 1.5 * GIB
    assert memory_ceiling(64 * GIB, 5 * GIB) == 5 * GIB


def test_before_the_plan_a_job_may_use_what_reading_takes_and_then_the_plan_and_a_margin() -> None:
    assert base_memory(60 * GIB, accelerators=0) == 3 * GIB
    assert base_memory(60 * GIB, accelerators=2) == 11 * GIB
    assert base_memory(GIB, accelerators=0) == GIB
    assert planned_memory(60 * GIB, 8 * GIB) == 11 * GIB
    assert planned_memory(60 * GIB, 56 * GIB) == 60 * GIB


def test_the_kernels_limit_of_memory_is_left_open_where_a_driver_reserves_addresses() -> None:
    limits = JobLimits(memory_bytes=60 * GIB, tasks=100, file_bytes=5).for_kernel()
    assert limits["DATA"] == (3 * GIB, None)
    assert (limits["FSIZE"], limits["NPROC"], limits["CORE"]) == ((5, 5), (100, 100), (0, 0))
    assert JobLimits(memory_bytes=60 * GIB, accelerators=1).for_kernel()["DATA"] == (None, None)


def watch(**limits: object) -> LimitWatch:
    return LimitWatch(JobLimits(**{"memory_bytes": 60 * GIB, **limits}), has_workers=False, now=0.0)  # type: ignore[arg-type]


def test_a_plan_raises_the_limit_of_memory() -> None:
    watched = watch()
    excess = watched.excess(lambda: Usage(memory_bytes=4 * GIB), 0.0)
    assert excess is not None
    assert "the job uses 4.0 GiB of main memory\nNeeded: at most 3.0 GiB" in str(excess)
    watched.plan_memory(4 * GIB)
    assert watched.excess(lambda: Usage(memory_bytes=6 * GIB), 1.0) is None
    assert watched.excess(lambda: Usage(memory_bytes=6 * GIB + 1), 2.0) is not None


def test_workers_that_the_plan_does_not_count_may_use_what_any_job_may() -> None:
    watched = LimitWatch(JobLimits(memory_bytes=60 * GIB), has_workers=True, now=0.0)
    watched.plan_memory(GIB)
    assert watched.excess(lambda: Usage(memory_bytes=59 * GIB), 0.0) is None
    assert watched.excess(lambda: Usage(memory_bytes=61 * GIB), 1.0) is not None


@pytest.mark.parametrize(
    ("usage", "words"),
    [(Usage(tasks=4097), "4097 processes and threads"), (Usage(log_bytes=GIB + 1), "1.0 GiB to its log")],
)
def test_processes_and_the_log_have_limits_too(usage: Usage, words: str) -> None:
    assert words in str(watch().excess(lambda: usage, 0.0))


def test_time_in_a_stage_adds_up_over_its_visits() -> None:
    watched = watch(stage_seconds={Stage.EVALUATING: 10.0})
    watched.enter(Stage.EVALUATING, 100.0)
    watched.enter(Stage.QUANTIZING, 106.0)
    watched.enter(Stage.EVALUATING, 200.0)
    assert watched.excess(Usage, 204.0) is None
    excess = watched.excess(Usage, 204.5)
    assert "the stage evaluating has taken more than 10 seconds" in str(excess)


def test_every_stage_has_a_limit_and_the_time_before_the_first_counts_as_resolving() -> None:
    assert set(STAGE_SECONDS) == set(Stage)
    assert watch().excess(Usage, STAGE_SECONDS[Stage.RESOLVING] + 1) is not None


def test_the_watch_does_not_look_more_often_than_four_times_a_second() -> None:
    looks: list[float] = []
    watched = watch()
    for now in (0.0, 0.1, 0.2, 0.25, 0.3):
        watched.excess(lambda now=now: looks.append(now) or Usage(), now)  # type: ignore[misc,func-returns-value]
    assert looks == [0.0, 0.25]


def test_messages_may_come_in_bursts_but_not_without_end() -> None:
    allowance = MessageAllowance(0.0)
    assert all(allowance.spend(0.0) for _ in range(5000))
    assert not allowance.spend(0.0)
    assert allowance.spend(1.0)
