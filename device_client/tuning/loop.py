"""The tuning loop: the page to read first.

    for each step t:
        measure at θ                                                    step_engine: zeroth_order or first_order
        journal ← (t, η, what was measured)      before θ moves         journal
        move θ                                                          step_engine
        now and then: validate, keep the best θ or go back, snapshot    run_directory

Resuming is the same loop. Where θ follows from records, a step on record is not measured again, and a snapshot only
saves replaying from the start; else what came after the last snapshot is cut from the journal and measured again, to
the same bits. A validation whose line is in metrics.jsonl is not repeated. So a run that was killed at any moment ends
with the same bits as one that was not. Validations come on a fixed schedule: where a time budget stops the run, only a
snapshot is written, so that stopping leaves no trace in the result.

Knows nothing about models, tokens or tasks: an engine makes steps, a ``Problem`` validates.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from device_client.tuning.divergence import MARGIN_NATS, DivergenceWatch
from device_client.tuning.evaluation import Evaluation
from device_client.tuning.journal import Journal, StepRecord
from device_client.tuning.loop_interface import Observer, Outcome, Problem, StoppedBy
from device_client.tuning.resting import NoRest, Rest
from device_client.tuning.run_directory import RunDirectory
from device_client.tuning.settings import TuneSettings
from device_client.tuning.smaller_batches import with_smaller_batches
from device_client.tuning.step_engine import StepEngine
from device_client.tuning.theta_file import Snapshot
from device_client.tuning.work_seconds import WorkSeconds
from shared.errors import IntegrityError

LAST, BEST = "last.safetensors", "best.safetensors"


class TuningLoop:
    """One run, ready to begin or to go on.

    Args:
        problem: What is tuned.
        engine: A fresh one; it makes the steps.
        theta: The bundle's own values, float32 (k,).
        settings: What decides the run.
        journal: Open.
        run: Its folder.
        observer: Is told how it goes.
        clock: Seconds that only grow.
        time_budget_seconds: Stop after so much time in this process, pauses included; None never does.
        shrunk: Is told when fewer run side by side, once the steps before it are on the disk.
        rest: Waits before a step while the machine should rest.
    """

    def __init__(
        self,
        problem: Problem,
        engine: StepEngine,
        theta: Tensor,
        settings: TuneSettings,
        journal: Journal,
        run: RunDirectory,
        observer: Observer,
        clock: Callable[[], float],
        time_budget_seconds: float | None = None,
        shrunk: Callable[[], None] = lambda: None,
        rest: Rest | None = None,
    ) -> None:
        self._problem, self._engine, self._settings = problem, engine, settings
        self._journal, self._run, self._observer = journal, run, observer
        self._time_budget_seconds, self._shrunk, self._rest = time_budget_seconds, shrunk, rest or NoRest()
        self._theta, self._steps_done, self._steps_measured = theta, 0, 0
        self._snapshot_at: int | None = None
        self._best: Snapshot | None = None
        self._validations = {
            int(line["steps_done"]): Evaluation.from_json(line)
            for line in run.metrics()
            if line["kind"] == "validation" and self._is_validation_due(int(line["steps_done"]))
        }
        self._seconds = WorkSeconds(run, clock)

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
        if self._journal.damaged_steps:
            self._observer.note(
                f"the journal is damaged after step {len(self._journal.records)}: {self._journal.damaged_steps} steps "
                "are made again"
            )
        if self._journal.records:
            self._observer.note(f"going on after step {len(self._journal.records)} of {self._settings.steps}")
        self._validate(replay_from)
        margin = MARGIN_NATS if self._settings.metric is None else math.inf
        watch = DivergenceWatch(self._validations[0].cost, start, margin)
        stopped_by = self._stop_reason()
        try:
            while stopped_by is None:
                step = self._steps_done
                record = self._recorded(step)
                if record is None and self._rests_past_budget():
                    stopped_by = "time budget"
                    break
                record = record or self._measure(step)
                if step >= replay_from:
                    self._theta = self._engine.move(self._theta, record)
                self._steps_done += 1
                watch.feed(record)
                if (
                    step >= replay_from and self._is_snapshot_due()
                ):  # while replaying, θ is already that of the snapshot
                    self._write_snapshot()
                if self._is_validation_due(self._steps_done):
                    watch.check_distance(self._theta, self._steps_done)
                    self._validate(replay_from)
                stopped_by = self._stop_reason()
        finally:
            self._journal.sync()
        if self._snapshot_at != self._steps_done:
            self._write_snapshot()
            self._seconds.mark(self._steps_done)
        return self._outcome(stopped_by)

    def _restore_snapshot(self) -> int:
        """Go back to the last snapshot where everything behind it is on record; return the steps behind it."""
        if self._validations and not self._is_best_whole():
            self._observer.note(f"{BEST} is damaged or missing: repeating the run from its start")
            self._validations.clear()
            self._run.forget_metrics()
            return 0
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
        due = range(0, max(1, steps_done), self._settings.validation_interval)
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

    def _rests_past_budget(self) -> bool:
        """Wait while the machine should rest, all on the disk; return whether that spent the time budget."""
        if not self._rest.is_due():
            return False
        self._write_snapshot()
        self._seconds.leave_out(self._rest.wait(self._seconds_left()))
        return self._is_budget_spent()

    def _note_shrink(self) -> None:
        self._write_snapshot()  # a step measured before would come out with other bits if it had to be measured again
        self._shrunk()
        self._run.append_metric({"kind": "fewer side by side", "steps_done": self._steps_done})
        self._observer.note("out of memory: running fewer sequences side by side")

    def _is_validation_due(self, steps_done: int) -> bool:
        return steps_done % self._settings.validation_interval == 0 or steps_done == self._settings.steps

    def _validate(self, replay_from: int) -> None:
        """Validate and snapshot θ, keep it or go back to the best one; what is on record is not measured again.

        Args:
            replay_from: Steps before the snapshot: their θ is not known, and whether they went back does not matter.
        """
        steps_done = self._steps_done
        evaluation = self._validations.get(steps_done)
        is_new = evaluation is None
        if evaluation is None:
            evaluation = with_smaller_batches(
                lambda: self._problem.validate(self._theta), self._problem, self._note_shrink
            )
            self._validations[steps_done] = evaluation
            if self._best_step() == steps_done:
                self._run.write_theta(BEST, self._theta, steps_done)
            self._run.append_metric({"kind": "validation", "steps_done": steps_done, **evaluation.as_json()})
        is_worse = self._engine.validated(evaluation.cost)
        best_step = self._best_step(steps_done)
        if best_step == steps_done and steps_done >= replay_from:
            self._best = Snapshot(self._theta, steps_done)
        if is_new:
            self._write_snapshot()
            self._seconds.mark(steps_done)
            self._observer.validated(steps_done, evaluation, is_best=best_step == steps_done)
        if is_worse and steps_done >= replay_from and self._stop_reason() is None:
            self._best = self._best or self._read_best(best_step)
            self._theta = self._best.theta.to(self._theta.device)
            self._observer.note(f"validation got worse: back to the values of step {best_step}, steps half as long")

    def _is_snapshot_due(self) -> bool:
        every = self._engine.snapshot_every
        is_between = every is not None and self._steps_done % every == 0
        return is_between and not self._is_validation_due(self._steps_done)  # a validation writes one, too

    def _write_snapshot(self) -> None:
        self._journal.sync()
        self._run.write_theta(LAST, self._theta, self._steps_done, self._engine.state())
        self._snapshot_at = self._steps_done

    def _best_step(self, steps_done: int | None = None) -> int:
        """Return the first step of the lowest validation cost, of all or of those up to ``steps_done``."""
        steps = [step for step in self._validations if steps_done is None or step <= steps_done]
        return min(steps, key=lambda step: (self._validations[step].cost, step))

    def _is_best_whole(self) -> bool:
        """Return whether the best θ on record is there, or one that a killed process was about to put on record."""
        try:
            best = self._run.read_theta(BEST)
        except IntegrityError:
            return False
        return best is not None and (best.steps_done == self._best_step() or best.steps_done not in self._validations)

    def _read_best(self, step: int) -> Snapshot:
        best = self._run.read_theta(BEST)
        if best is None or best.steps_done != step:
            raise IntegrityError(
                f"{self._run.path / BEST} is not the θ of step {step}",
                next_step="move that folder away and run the same command again",
            )
        return best

    def _stop_reason(self) -> StoppedBy | None:
        if self._steps_done >= self._settings.steps:
            return "steps"
        if self._settings.patience is not None and self._validations_without_best() >= self._settings.patience:
            return "early stop"
        is_live = self._steps_done >= len(self._journal.records)
        return "time budget" if is_live and self._is_budget_spent() else None

    def _is_budget_spent(self) -> bool:
        left = self._seconds_left()
        return left is not None and left <= 0

    def _seconds_left(self) -> float | None:
        return None if self._time_budget_seconds is None else self._time_budget_seconds - self._seconds.passed()

    def _validations_without_best(self) -> int:
        """How many validations up to now came after the best of them."""
        steps = sorted(step for step in self._validations if step <= self._steps_done)
        return len(steps) - 1 - steps.index(self._best_step(self._steps_done))

    def _outcome(self, stopped_by: StoppedBy) -> Outcome:
        best = self._read_best(self._best_step())
        return Outcome(
            last=self._theta,
            best=best.theta,
            best_step=best.steps_done,
            steps_done=self._steps_done,
            stopped_by=stopped_by,
            validations=dict(sorted(self._validations.items())),
            records=self._journal.records,
            steps_measured=self._steps_measured,
            paused_seconds=self._seconds.paused,
        )
