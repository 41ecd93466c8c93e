"""What the tuning loop needs of its surroundings, and what it returns: nothing here does anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from device_client.tuning.evaluation import Evaluation
from device_client.tuning.journal import StepRecord

StoppedBy = Literal["steps", "early stop", "time budget"]


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
class Outcome:
    """What a run came to.

    Attributes:
        last: θ after the last step, float32 (k,).
        best: θ of the lowest validation cost: of the lowest loss, or of the highest score.
        best_step: Steps behind it; 0 means that nothing beat the bundle's own values.
        steps_done: Steps behind ``last``.
        stopped_by: Why it ended.
        validations: Steps done → evaluation, step 0 included; a run stopped by its time budget has none of ``last``.
        records: All steps.
        steps_measured: Steps that were measured in this process.
        paused_seconds: How long this process waited between steps.
    """

    last: Tensor
    best: Tensor
    best_step: int
    steps_done: int
    stopped_by: StoppedBy
    validations: dict[int, Evaluation]
    records: list[StepRecord]
    steps_measured: int
    paused_seconds: float = 0.0
