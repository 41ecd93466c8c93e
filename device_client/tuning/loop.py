"""The tuning loop: the page to read first.

    for each step t:
        measure at θ                                                    step_engine: zeroth_order or first_order
        journal ← (t, η, what was measured)      before θ moves         journal
        move θ                                                          step_engine
        now and then: validate, keep the best θ, snapshot θ             run_directory

Resuming is the same loop. Where θ follows from records, a step on record is not measured again, and a snapshot only
saves replaying from the start; else what came after the last snapshot is cut from the journal and measured again, to
the same bits. A validation whose line is in metrics.jsonl is not repeated. So a run that was killed at any moment ends
with the same bits as one that was not. Validations come on a fixed schedule: where a time budget stops the run, only a
snapshot is written, so that stopping leaves no trace in the result.

Knows nothing about models, tokens or tasks: an engine makes steps, a ``Problem`` validates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from device_client.tuning.divergence import DivergenceWatch
from device_client.tuning.evaluation import Evaluation
from device_client.tuning.journal import Journal, StepRecord
from device_client.tuning.run_directory import RunDirectory
from device_client.tuning.smaller_batches import with_smaller_batches
from device_client.tuning.step_engine import StepEngine
from shared.errors import IntegrityError

StoppedBy = Literal["steps", "early stop", "time budget"]
LAST, BEST = "last.safetensors", "best.safetensors"


class Problem(Protocol):
    """What is tuned, and how much of it runs at once."""

    def validate(self, theta: Tensor) -> Evaluation:
        """Return what θ scores on the validation rows."""

    def shrink(self) -> bool:
        """Run fewer sequences side by side from now on; False where it is one already."""


class Observer(Protocol):
    """Is told how the run goes; what it does with it changes nothing."""

    def stepped(self, record: StepRecord) -> None:
        """A step was made now (not replayed)."""

    def validated(self, steps_done: int, evaluation: Evaluation, *, is_best: bool) -> None:
        """A validation was made now."""

    def note(self, text: str) -> None:
        """Something a person should know."""


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """What the loop needs to know.

    Attributes:
        steps: T.
        validate_every: Steps between validations.
        patience: Stop after so many validations without a new best; None never stops early.
        time_budget_seconds: Stop after so much time in this process; None never does.
    """

    steps: int
    validate_every: int = 100
    patience: int | None = None
    time_budget_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to.

    Attributes:
        last: θ after the last step, float32 (k,).
        best: θ of the lowest validation loss.
        best_step: Steps behind it; 0 means that nothing beat the bundle's own values.
        steps_done: Steps behind ``last``.
        stopped_by: Why it ended.
        validations: Steps done → evaluation, step 0 included; a run stopped by its time budget has none of ``last``.
        records: All steps.
        steps_measured: Steps that were measured in this process.
    """

    last: Tensor
    best: Tensor
    best_step: int
    steps_done: int
    stopped_by: StoppedBy
    validations: dict[int, Evaluation]
    records: list[StepRecord]
    steps_measured: int


class TuningLoop:
    """One run, ready to begin or to go on.

    Args:
        problem: What is tuned.
        engine: A fresh one; it makes the steps.
        theta: The bundle's own values, float32 (k,).
        settings: How long and how often.
        journal: Open.
        run: Its folder.
        observer: Is told how it goes.
        clock: Seconds that only grow.
        shrunk: Is told when fewer run side by side, once the steps before it are on the disk.
    """

    def __init__(
        self,
        problem: Problem,
        engine: StepEngine,
        theta: Tensor,
        settings: LoopSettings,
        journal: Journal,
        run: RunDirectory,
        observer: Observer,
        clock: Callable[[], float],
        shrunk: Callable[[], None] = lambda: None,
    ) -> None:
        self._problem, self._engine, self._settings = problem, engine, settings
        self._journal, self._run, self._observer, self._clock = journal, run, observer, clock
        self._shrunk = shrunk
        self._theta, self._steps_done, self._steps_measured = theta, 0, 0
        self._snapshot_at: int | None = None
        self._validations = {
            int(line["steps_done"]): Evaluation.from_json(line)
            for line in run.metrics()
            if line["kind"] == "validation" and self._is_validation_due(int(line["steps_done"]))
        }
        self._begun_at = clock()

    def run(self) -> Outcome:
        """Make or repeat every step, and return the outcome.

        Raises:
            Diverged: The loss is not finite, or loss or θ are far from where they began; the best θ so far is kept.
            DiskError: The disk is full; the same command goes on once there is space.
            ResourceError: A single sequence does not fit the memory.
            KeyboardInterrupt: On the user's wish; everything needed to go on is on the disk.
        """
        start = self._theta
        replay_from = self._restore_snapshot()
        if not self._engine.is_replayable:
            self._journal.cut(replay_from)
        if self._journal.records:
            self._observer.note(f"going on after step {len(self._journal.records)} of {self._settings.steps}")
        if replay_from == 0:
            self._validate_if_new()
        watch = DivergenceWatch(self._validations[0].loss, start)
        stopped_by = self._stop_reason()
        try:
            while stopped_by is None:
                step = self._steps_done
                record = self._recorded(step) or self._measure(step)
                if step >= replay_from:
                    self._theta = self._engine.move(self._theta, record)
                self._steps_done += 1
                watch.feed(record)
                if self._is_snapshot_due():
                    self._write_snapshot()
                if self._is_validation_due(self._steps_done):
                    watch.check_distance(self._theta, self._steps_done)
                    self._validate_if_new()
                stopped_by = self._stop_reason()
        finally:
            self._journal.sync()
        if self._snapshot_at != self._steps_done:
            self._write_snapshot()
        return self._outcome(stopped_by)

    def _restore_snapshot(self) -> int:
        """Go back to the last snapshot where everything behind it is on record; return the steps behind it."""
        try:
            snapshot = self._run.read_theta(LAST)
            if snapshot is None or not self._is_on_record(snapshot.steps_done):
                return 0
            if snapshot.theta.shape != self._theta.shape:
                raise IntegrityError(f"{LAST} holds another number of values")
            self._engine.restore(snapshot.state)
        except IntegrityError as error:
            self._observer.note(f"{error.found}: repeating the run from its start")
            return 0
        self._theta, self._snapshot_at = snapshot.theta.to(self._theta.device), snapshot.steps_done
        return snapshot.steps_done

    def _is_on_record(self, steps_done: int) -> bool:
        due = range(0, max(1, steps_done), self._settings.validate_every)
        return steps_done <= len(self._journal.records) and all(step in self._validations for step in due)

    def _recorded(self, step: int) -> StepRecord | None:
        if step >= len(self._journal.records):
            return None
        record = self._journal.records[step]
        self._engine.recall(record)
        return record

    def _measure(self, step: int) -> StepRecord:
        record = with_smaller_batches(lambda: self._engine.measure(step, self._theta), self._problem, self._note_shrink)
        self._journal.append(record)
        self._steps_measured += 1
        self._observer.stepped(record)
        return record

    def _note_shrink(self) -> None:
        self._write_snapshot()  # a step measured before would come out with other bits if it had to be measured again
        self._shrunk()
        self._run.append_metric({"kind": "fewer side by side", "steps_done": self._steps_done})
        self._observer.note("out of memory: running fewer sequences side by side")

    def _is_validation_due(self, steps_done: int) -> bool:
        return steps_done % self._settings.validate_every == 0 or steps_done == self._settings.steps

    def _validate_if_new(self) -> None:
        """Validate θ, keep it if it is the best so far, and snapshot it; nothing where that is on record."""
        steps_done = self._steps_done
        if steps_done in self._validations:
            return
        evaluation = with_smaller_batches(lambda: self._problem.validate(self._theta), self._problem, self._note_shrink)
        is_best = not self._validations or evaluation.loss < self._validations[self._best_step()].loss
        if is_best:
            self._run.write_theta(BEST, self._theta, steps_done)
        self._validations[steps_done] = evaluation
        self._run.append_metric({"kind": "validation", "steps_done": steps_done, **evaluation.as_json()})
        self._write_snapshot()
        self._observer.validated(steps_done, evaluation, is_best=is_best)

    def _is_snapshot_due(self) -> bool:
        every = self._engine.snapshot_every
        is_between = every is not None and self._steps_done % every == 0
        return is_between and not self._is_validation_due(self._steps_done)  # a validation writes one, too

    def _write_snapshot(self) -> None:
        self._journal.sync()
        self._run.write_theta(LAST, self._theta, self._steps_done, self._engine.state())
        self._snapshot_at = self._steps_done

    def _best_step(self) -> int:
        return min(self._validations, key=lambda step: (self._validations[step].loss, step))

    def _stop_reason(self) -> StoppedBy | None:
        if self._steps_done >= self._settings.steps:
            return "steps"
        if self._settings.patience is not None and self._validations_without_best() >= self._settings.patience:
            return "early stop"
        budget = self._settings.time_budget_seconds
        is_live = self._steps_done >= len(self._journal.records)
        if budget is not None and is_live and self._clock() - self._begun_at >= budget:
            return "time budget"
        return None

    def _validations_without_best(self) -> int:
        """How many validations up to now came after the best of them."""
        steps = sorted(step for step in self._validations if step <= self._steps_done)
        best = min(steps, key=lambda step: (self._validations[step].loss, step))
        return len(steps) - 1 - steps.index(best)

    def _outcome(self, stopped_by: StoppedBy) -> Outcome:
        best = self._run.read_theta(BEST)
        if best is None or best.steps_done != self._best_step():
            raise IntegrityError(
                f"{self._run.path / BEST} is not the θ of step {self._best_step()}",
                next_step="move that folder away and run the same command again",
            )
        return Outcome(
            last=self._theta,
            best=best.theta,
            best_step=best.steps_done,
            steps_done=self._steps_done,
            stopped_by=stopped_by,
            validations=dict(sorted(self._validations.items())),
            records=self._journal.records,
            steps_measured=self._steps_measured,
        )
