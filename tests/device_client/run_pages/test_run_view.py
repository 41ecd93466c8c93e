"""What is derived from a run's files: passes, seconds, loss differences, signal."""

from __future__ import annotations

from pathlib import Path

import pytest
from written_run import write_run

from device_client.run_pages.run_view import read_run
from shared.errors import IntegrityError, NotFound


def test_a_measured_step_costs_three_passes_and_another_two(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path, curved_steps=2))
    assert run.passes() == [0, 3, 6, 8, 10]
    assert run.against_passes(run.validation_points()) == [(0, 0.9), (6, 0.7), (10, 0.6)]


def test_one_sided_directions_cost_one_pass_each_and_first_order_three(tmp_path: Path) -> None:
    one_sided = write_run(tmp_path / "a", settings={"directions": "one-sided", "queries": 4}, curved_steps=0)
    assert read_run(one_sided).passes() == [0, 4, 8, 12, 16]
    exact = read_run(write_run(tmp_path / "b", settings={"gradient": "first-order"}, curved_steps=0))
    assert exact.passes()[-1] == 12
    assert exact.loss_differences() == []


def test_loss_differences_have_the_median_that_the_result_names(tmp_path: Path) -> None:
    """|g| is 1, 3, 2, 4 with median 2.5; the result says 2.5, so |ΔL| = |g|."""
    run = read_run(write_run(tmp_path))
    assert run.loss_differences() == [(1, 1.0), (2, 3.0), (3, 2.0), (4, 4.0)]


def test_without_a_result_loss_differences_follow_from_epsilon(tmp_path: Path) -> None:
    """|ΔL| = 2·ε·|g| with ε = 0.5."""
    run = read_run(write_run(tmp_path, is_finished=False))
    assert run.state == "unfinished"
    assert run.loss_differences() == [(1, 1.0), (2, 3.0), (3, 2.0), (4, 4.0)]


def test_the_signal_share_is_a_mean_over_a_mean(tmp_path: Path) -> None:
    """After one step 0.5 / 1; with a decay of 0.98, after two 0.5 / ((0.98·1 + 9) / 1.98)."""
    (_, first), (_, second), *_ = read_run(write_run(tmp_path)).signal_shares()
    assert first == pytest.approx(0.5)
    assert second == pytest.approx(0.5 / (9.98 / 1.98))


def test_seconds_between_two_marks_are_spread_evenly(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path))
    seconds = run.seconds()
    assert seconds is not None
    assert [seconds(steps) for steps in (0, 1, 2, 3.5, 4)] == [0, 5, 10, 17.5, 20]
    assert run.steps_per_second() == [(2, 0.2), (4, 0.2)]


@pytest.mark.parametrize("content", [b"", b'{"seconds": 1}\n', b"torn", b'{"a": 1}\n[2]\n'])
def test_a_damaged_file_of_seconds_costs_nothing_but_its_curve(tmp_path: Path, content: bytes) -> None:
    folder = write_run(tmp_path)
    (folder / "seconds.jsonl").write_bytes(content)
    run = read_run(folder)
    assert run.seconds() is None
    assert run.against_seconds(run.validation_points()) == []


def test_a_journal_that_is_shorter_than_its_run_is_refused(tmp_path: Path) -> None:
    journal = write_run(tmp_path) / "journal.bin"
    journal.write_bytes(journal.read_bytes()[:-30])  # a whole record
    with pytest.raises(IntegrityError, match="ends at step 3 of 4"):
        read_run(tmp_path)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no run in"):
        read_run(tmp_path)
