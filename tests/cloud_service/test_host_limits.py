"""What the control groups of this process allow."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cloud_service.host_limits import cgroup_limits, processor_count


def test_the_limit_of_the_cgroup_that_the_process_is_in_counts(tmp_path: Path) -> None:
    root, membership = tmp_path / "cgroup", tmp_path / "self"
    own = root / "user.slice" / "session.scope"
    own.mkdir(parents=True)
    (own / "memory.max").write_text("3000\n")
    (own.parent / "memory.max").write_text("max\n")
    (root / "memory.max").write_text("9000\n")
    membership.write_text("0::/user.slice/session.scope\n")
    assert cgroup_limits(membership, root) == [3000, 9000]
    membership.write_text("0::/not/mounted/here\n")
    assert cgroup_limits(membership, root) == [9000]


def test_the_limit_of_an_old_cgroup_counts(tmp_path: Path) -> None:
    own = tmp_path / "cgroup" / "memory" / "docker" / "abc"
    own.mkdir(parents=True)
    (own / "memory.limit_in_bytes").write_text("5000\n")
    membership = tmp_path / "self"
    membership.write_text("7:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n")
    assert cgroup_limits(membership, tmp_path / "cgroup") == [5000]


@pytest.mark.parametrize(("quota", "allowed"), [("50000 100000", 1), ("100000 100000", 1), ("max 100000", None)])
def test_a_quota_of_processor_time_counts(tmp_path: Path, quota: str, allowed: int | None) -> None:
    own = tmp_path / "cgroup" / "job"
    own.mkdir(parents=True)
    (own / "cpu.max").write_text(f"{quota}\n")
    membership = tmp_path / "self"
    membership.write_text("0::/job\n")
    assert processor_count(membership, tmp_path / "cgroup") == (allowed or len(os.sched_getaffinity(0)))


@pytest.mark.parametrize(("quota", "allowed"), [("100000", 1), ("-1", None)])
def test_a_quota_of_an_old_cgroup_counts(tmp_path: Path, quota: str, allowed: int | None) -> None:
    own = tmp_path / "cgroup" / "cpu"
    own.mkdir(parents=True)
    (own / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (own / "cpu.cfs_period_us").write_text("100000\n")
    membership = tmp_path / "self"
    membership.write_text("1:cpu:/docker/abc\n")
    assert processor_count(membership, tmp_path / "cgroup") == (allowed or len(os.sched_getaffinity(0)))
