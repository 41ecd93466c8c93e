"""When to give up: losses that are not finite, or a loss or values that have left the region where they began.

    diverged   N steps in a row skipped, or  mean clean loss of the last W steps > L(θ₀) + margin,
               or, at a validation,  ‖θ − θ₀‖ > 10 ‖θ₀‖

A metric has a worst value, and a mean of it is no reason to give up: it is watched for the first and the last alone.
The last one is for losses that cannot grow: far away the model answers the same whatever it is asked, ΔL is zero, and
nothing would ever call that an error. All are functions of records and θ, so a resumed run comes to the same verdict at
the same step.
"""

from __future__ import annotations

import math
import statistics
from collections import deque

import torch
from torch import Tensor

from device_client.tuning.journal import StepFlags, StepRecord
from shared.errors import Diverged

MAX_SKIPPED_IN_A_ROW = 10
WINDOW = 20
MARGIN_NATS = 2.0
FARTHEST = 10.0


class DivergenceWatch:
    """Sees every record of a run in order.

    Args:
        start_loss: L(θ₀), nats per answer; of a metric its cost.
        start: θ₀, float32 (k,).
        margin: By how much a loss may exceed it; infinity for a metric.

    Raises:
        Diverged: The start itself is not finite.
    """

    def __init__(self, start_loss: float, start: Tensor, margin: float = MARGIN_NATS) -> None:
        if not math.isfinite(start_loss):
            raise Diverged(
                "the bundle's own loss on the validation rows is not finite", needed="finite logits",
                next_step="zo-device verify; on a GPU try --dtype float32",
            )  # fmt: skip
        self._limit = start_loss + margin
        self._start_loss, self._start = start_loss, start
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

    def check_distance(self, theta: Tensor, steps_done: int) -> None:
        """Take the values that are being validated.

        Raises:
            Diverged: They are farther from where they began than any fine-tune goes.
        """
        moved = float(torch.linalg.vector_norm(theta - self._start))
        length = float(torch.linalg.vector_norm(self._start))
        if moved > FARTHEST * length > 0:
            raise Diverged(
                f"after {steps_done} steps the values have moved {moved / length:.3g} times their own length; "
                "the best values so far are kept",
                needed=f"at most {FARTHEST:.0f} times",
                next_step="tune again with shorter steps: --step or --lr at a tenth of this run's, or --step auto",
                param="lr",
            )

    def _diverged(self, record: StepRecord, found: str) -> Diverged:
        return Diverged(
            f"{found} at step {record.step} (it began at {self._start_loss:.3g}); the best values so far are kept",
            needed=f"at most {self._limit:.3g} nats per answer",
            next_step="tune again with shorter steps: --step or --lr at a third of this run's, or --step auto",
            param="lr",
        )
