"""When to give up: losses that are not finite, or a loss that has left the region where it began.

    diverged   N steps in a row skipped, or  mean clean loss of the last W steps > L(θ₀) + margin

Both are functions of the records, so a resumed run comes to the same verdict at the same step.
"""

from __future__ import annotations

import math
import statistics
from collections import deque

from device_client.tuning.journal import StepFlags, StepRecord
from shared.errors import Diverged

MAX_SKIPPED_IN_A_ROW = 10
WINDOW = 20
MARGIN_NATS = 2.0


class DivergenceWatch:
    """Sees every record of a run in order.

    Args:
        start_loss: L(θ₀), nats per answer.

    Raises:
        Diverged: The start itself is not finite.
    """

    def __init__(self, start_loss: float) -> None:
        if not math.isfinite(start_loss):
            raise Diverged(
                "the bundle's own loss on the validation rows is not finite", needed="finite logits",
                next_step="zo-device verify; on a GPU try --dtype float32",
            )  # fmt: skip
        self._limit = start_loss + MARGIN_NATS
        self._start_loss = start_loss
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._skipped_in_a_row = 0

    def feed(self, record: StepRecord) -> None:
        """Take the next record.

        Raises:
            Diverged: The run has left the region where it began; what was best is kept.
        """
        if StepFlags.SKIPPED in record.flags:
            self._skipped_in_a_row += 1
            if self._skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
                raise self._diverged(record, f"the loss was not finite in {self._skipped_in_a_row} steps in a row")
            return
        self._skipped_in_a_row = 0
        self._recent.append(record.clean_loss)
        mean = statistics.fmean(self._recent)
        if len(self._recent) == WINDOW and mean > self._limit:
            raise self._diverged(record, f"the loss of the last {WINDOW} steps averages {mean:.3g} nats per answer")

    def _diverged(self, record: StepRecord, found: str) -> Diverged:
        return Diverged(
            f"{found} at step {record.step} (it began at {self._start_loss:.3g}); the best values so far are kept",
            needed=f"at most {self._limit:.3g} nats per answer",
            next_step="tune again with a lower learning rate: --lr or --step-length at a third of this run's",
            param="lr",
        )
