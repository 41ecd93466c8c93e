"""A run as its files tell it, for lists, pages and comparisons. Reads; imports no torch, writes nothing.

    passes of a step       2 per direction (one-sided 1), one more where curvature was measured; 3 in first order
    |ΔL| of a step         |L₊ − L₋|, mean over its directions: from |g| by the factor that the result's median has
    signal share           running mean of s over running mean of g²
    seconds of a step      between two lines of seconds.jsonl evenly spread

Older runs have no seconds.jsonl and no answers.json: what needs them is then empty.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from device_client.tuning.curve import moving_average
from device_client.tuning.journal import StepRecord, read_journal
from device_client.tuning.run_directory import RunDirectory
from device_client.tuning.work_seconds import read_work_seconds
from shared.errors import IntegrityError

FIRST_ORDER_PASSES = 3
"""A backward pass counts as two forward passes."""

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class RunView:
    """What the files of a run say.

    Attributes:
        path: Its folder.
        config: config.json.
        records: All steps.
        validations: The validation lines of metrics.jsonl.
        result: result.json; empty while the run is not finished.
        resources: resources.json, likewise.
        answers: answers.json, or None.
        work_seconds: (steps done, seconds worked).
        origin: Who shared it, where it was not tuned here; without a journal where its values alone were shared.
    """

    path: Path
    config: Mapping[str, Any]
    records: Sequence[StepRecord] = field(repr=False)
    validations: Sequence[Mapping[str, Any]] = field(repr=False)
    result: Mapping[str, Any]
    resources: Mapping[str, Any]
    answers: Mapping[str, Any] | None
    work_seconds: Sequence[Point]
    origin: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        """Its name."""
        return self.path.name

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decided it."""
        found: Mapping[str, Any] = self.config["settings"]
        return found

    @property
    def state(self) -> str:
        """Whether all its steps are made, or somebody shared it."""
        if self.origin is not None:
            return "applied"
        return "finished" if self.result and self.result["stopped_by"] != "time budget" else "unfinished"

    @property
    def steps_done(self) -> int:
        """How many steps were made."""
        return len(self.records) if self.origin is None else int(self.origin["steps_done"])

    @property
    def metric(self) -> str | None:
        """What was raised; None where the loss was lowered."""
        return self.settings.get("metric")

    def passes(self) -> list[int]:
        """Return the forward passes spent before each step and at the end: one entry more than steps."""
        return list(accumulate(map(self._passes_of, self.records), initial=0))

    def seconds(self) -> Callable[[float], float] | None:
        """Return what tells the seconds worked from the steps done; None where no two moments are on record."""
        marks = [(float(steps), seconds) for steps, seconds in self.work_seconds]
        pace = self.resources.get("seconds_per_step")
        if len(marks) < 2 and pace and self.resources.get("steps_in_this_process") == len(self.records):
            marks = [(0.0, 0.0), (float(len(self.records)), pace * len(self.records))]
        if len(marks) < 2:
            return None

        def at(steps: float) -> float:
            for (before, begun), (after, ended) in pairwise(marks):
                if steps <= after or (after, ended) == marks[-1]:
                    return begun + (ended - begun) * (steps - before) / (after - before)
            return math.nan

        return at

    def validation_points(self) -> list[Point]:
        """Return (steps done, loss or metric) of each validation."""
        name = "loss" if self.metric is None else "score"
        return [(line["steps_done"], line[name]) for line in self.validations if line.get(name) is not None]

    def training_points(self) -> list[Point]:
        """Return (steps done, running mean of the rows' loss or metric)."""
        sign = 1 if self.metric is None else -1
        means = moving_average([sign * record.clean_loss for record in self.records])
        return [(record.step + 1, mean) for record, mean in zip(self.records, means, strict=True)]

    def against_passes(self, points: Sequence[Point]) -> list[Point]:
        """Return points of steps as points of forward passes."""
        passes = self.passes()
        return [(passes[int(steps)], y) for steps, y in points if steps < len(passes)]

    def against_seconds(self, points: Sequence[Point]) -> list[Point]:
        """Return points of steps as points of seconds; nothing where those are not known."""
        seconds = self.seconds()
        return [] if seconds is None else [(seconds(steps), y) for steps, y in points]

    def loss_differences(self) -> list[Point]:
        """Return (step, |L₊ − L₋|); of first order, which has none, nothing."""
        if self.is_first_order:
            return []
        sizes = [(record.step + 1, _mean_size(record)) for record in self.records]
        finite = [size for _, size in sizes if math.isfinite(size)]
        median = statistics.median(finite) if finite else 0.0
        known = self.result.get("median_loss_difference")
        sides = 1 if self.settings.get("directions") == "one-sided" else 2
        epsilon = self.resources.get("epsilon") or self.settings.get("epsilon") or math.nan
        factor = known / median if known and median else sides * epsilon
        return [(step, factor * size) for step, size in sizes]

    def signal_shares(self) -> list[Point]:
        """Return (step, share of g² that the rows of a batch agree on, 0 … 1), a running mean; nothing unmeasured."""
        kept = [record for record in self.records if math.isfinite(record.signal)]
        signals = moving_average([record.signal for record in kept])
        squares = moving_average([statistics.fmean(g * g for g in record.gradients) for record in kept])
        return [
            (record.step + 1, min(1.0, max(0.0, signal / square)))
            for record, signal, square in zip(kept, signals, squares, strict=True)
            if square > 0
        ]

    def steps_per_second(self) -> list[Point]:
        """Return (steps done, steps per second since the mark before)."""
        return [
            (after, (after - before) / (ended - begun))
            for (before, begun), (after, ended) in pairwise(self.work_seconds)
            if ended > begun
        ]

    @property
    def is_first_order(self) -> bool:
        """Whether steps had an exact gradient."""
        return self.settings.get("gradient") == "first-order"

    def _passes_of(self, record: StepRecord) -> int:
        if self.is_first_order:
            return FIRST_ORDER_PASSES
        is_measured = math.isfinite(record.curvature)
        sides = 1 if self.settings.get("directions") == "one-sided" and not is_measured else 2
        return sides * int(self.settings.get("queries", 1)) + is_measured


def read_run(path: Path) -> RunView:
    """Return what the files of a run say.

    Raises:
        NotFound: There is no run in the folder.
        IntegrityError: A file is damaged.
    """
    run = RunDirectory(path)
    config, result = run.read_config(), run.read_result() or {}
    records, origin = read_journal(run.journal)[1], run.read_json("origin.json")
    if origin is None and len(records) < result.get("steps_done", 0):
        raise IntegrityError(
            f"{run.journal} ends at step {len(records)} of {result['steps_done']}",
            next_step="run the same tune command again: it makes the others again",
        )
    return RunView(
        path=path,
        config=config,
        records=records,
        validations=[line for line in run.metrics() if line["kind"] == "validation"],
        result=result,
        resources=run.read_json("resources.json") or {},
        answers=run.read_json("answers.json"),
        work_seconds=[(float(steps), seconds) for steps, seconds in read_work_seconds(run)],
        origin=origin,
    )


def _mean_size(record: StepRecord) -> float:
    sizes = [abs(gradient) for gradient in record.gradients if math.isfinite(gradient)]
    return statistics.fmean(sizes) if sizes else math.nan
