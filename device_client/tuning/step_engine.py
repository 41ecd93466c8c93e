"""One step of a run, as the loop sees it: measure something at θ, put it on record, move θ by it.

Two kinds of engines, told apart by ``is_replayable``:

    zeroth order    θ moves by what is on record: a snapshot only saves replaying the journal      zeroth_order
    first order     the record is an account; θ and the engine's state are in snapshots, and what  first_order
                    came after the last of them is measured again, to the same bits

Knows nothing about models, files or validations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from device_client.tuning.journal import StepRecord


class StepEngine(Protocol):
    """Makes the steps of a run, in order."""

    @property
    def is_replayable(self) -> bool:
        """Whether ``move`` needs the record alone, so that steps on record are not measured again."""

    @property
    def snapshot_every(self) -> int | None:
        """Steps between snapshots beside those of validations; None needs no more."""

    def measure(self, step: int, theta: Tensor) -> StepRecord:
        """Measure a step at θ; called again as a whole where memory ran out, and then nothing was changed before."""

    def recall(self, record: StepRecord) -> None:
        """Take a step from its record, instead of ``measure``."""

    def move(self, theta: Tensor, record: StepRecord) -> Tensor:
        """Return θ after the step that was measured or recalled last; ``theta`` itself is left as it is."""

    def validated(self, loss: float) -> bool:
        """Take the next validation's loss, the first before any step; return whether to go back to the best θ."""

    def state(self) -> Mapping[str, Tensor]:
        """Return what a snapshot must keep beside θ, by name."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go back to what ``state`` returned.

        Raises:
            IntegrityError: It is not what this engine keeps.
        """

    def account(self, records: Sequence[StepRecord]) -> dict[str, Any]:
        """Return what result.json says of the steps, beside what every engine's says."""
