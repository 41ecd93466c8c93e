"""How ratios are taken, on rounds whose times are known."""

from __future__ import annotations

import pytest
import torch
from runtime.stopwatch import Effort, Timing, alternate, ratio, without_launching

CPU = torch.device("cpu")


def test_a_ratio_is_the_median_of_the_rounds_and_not_of_the_times() -> None:
    # the machine was four times slower in the second round: no ratio shows it
    found = ratio(Timing((2.0, 8.0, 3.0)), Timing((1.0, 4.0, 1.0)))
    assert found == {"median": 2.0, "min": 2.0, "max": 3.0}


def test_a_ratio_needs_as_many_rounds_of_both() -> None:
    with pytest.raises(ValueError, match="shorter"):
        ratio(Timing((1.0, 2.0)), Timing((1.0,)))


def test_a_timing_says_milliseconds() -> None:
    assert Timing((0.25, 0.5, 2.0)).to_json() == {"median_ms": 500.0, "min_ms": 250.0, "max_ms": 2000.0, "rounds": 3}


def test_actions_run_once_to_warm_up_then_in_turn_forwards_and_backwards() -> None:
    ran: list[str] = []
    actions = {name: lambda name=name: ran.append(name) for name in "ab"}
    timings = alternate(actions, CPU, Effort(seconds=0.0, least_rounds=3, most_rounds=9))
    assert "".join(ran) == "ab" + "ab" + "ba" + "ab"
    assert [len(timing.seconds) for timing in timings.values()] == [3, 3]


def test_no_more_rounds_than_the_most_are_made_whatever_the_time() -> None:
    timings = alternate({"nothing": lambda: None}, CPU, Effort(seconds=3600.0, least_rounds=1, most_rounds=4))
    assert len(timings["nothing"].seconds) == 4


def test_on_a_cpu_an_action_is_launched_as_it_is() -> None:
    def action() -> None:
        pass

    assert without_launching(action, CPU) is action
