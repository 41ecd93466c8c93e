"""Time several ways of doing the same thing against each other, in turn, so that the machine's drift hits all alike.

    ratio(a, b) = median over rounds of a_i / b_i          a_i and b_i are neighbours in time

Each way runs once to warm up. The order is reversed from round to round. On CUDA a time ends when the device is done.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

Action = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Effort:
    """How often things are measured.

    Attributes:
        seconds: No new round begins after so long …
        least_rounds: … unless there were fewer than this.
        most_rounds: At most so many rounds.
    """

    seconds: float = 20.0
    least_rounds: int = 5
    most_rounds: int = 25


@dataclass(frozen=True, slots=True)
class Timing:
    """The seconds of each round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Seconds of the middle round."""
        return statistics.median(self.seconds)

    def to_json(self) -> dict[str, float | int]:
        """Return median, extremes and number of rounds, in milliseconds."""
        return {
            "median_ms": 1e3 * self.median,
            "min_ms": 1e3 * min(self.seconds),
            "max_ms": 1e3 * max(self.seconds),
            "rounds": len(self.seconds),
        }


def ratio(timing: Timing, peer: Timing) -> dict[str, float]:
    """Return how many times as long as its peer something took, round by round."""
    ratios = [own / other for own, other in zip(timing.seconds, peer.seconds, strict=True)]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def alternate(actions: Mapping[str, Action], device: torch.device, effort: Effort) -> dict[str, Timing]:
    """Run all actions in turn until the effort is spent, and return the timing of each."""
    for action in actions.values():
        seconds_of(action, device)
    found: dict[str, list[float]] = {name: [] for name in actions}
    begin = time.perf_counter()
    for done in range(effort.most_rounds):
        if done >= effort.least_rounds and time.perf_counter() - begin > effort.seconds:
            break
        for name in list(actions)[:: 1 if done % 2 == 0 else -1]:
            found[name].append(seconds_of(actions[name], device))
    return {name: Timing(tuple(seconds)) for name, seconds in found.items()}


def seconds_of(action: Action, device: torch.device) -> float:
    """Return how long an action takes until the device is done."""
    wait_for(device)
    begin = time.perf_counter()
    action()
    wait_for(device)
    return time.perf_counter() - begin


def wait_for(device: torch.device) -> None:
    """Wait until the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def without_launching(action: Action, device: torch.device) -> Action:
    """Return the action as one CUDA graph, so that its kernels are timed and not their launches; on a CPU as it is."""
    if device.type != "cuda":
        return action
    action()
    wait_for(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        action()
    return graph.replay


def as_json(timings: Mapping[str, Timing]) -> dict[str, Any]:
    """Return every timing as JSON."""
    return {name: timing.to_json() for name, timing in timings.items()}
