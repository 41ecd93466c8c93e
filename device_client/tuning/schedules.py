"""How far each step goes: a constant learning rate, or one normalised by what the run has seen.

    constant   η_t = η                                           the paper's plain ZO-SGD
    auto       η_t = λ / (√k · rms(g))      rms² ← β·rms² + (1−β)·mean g²  (bias-corrected, this step included)
    both       η_t · decay(t),  decay = 1 or 1 − t/T
    clipping   η_t · min(1, m·median|g| / |g|)                   median over the last 128 steps, once 16 were seen

Symbols: g projected gradient · λ ``step_length``, the length ‖η·g·z‖ of a typical step · k sensitive values · T steps
in all. g grows with the model's gradient norm and ‖z‖ with √k, so an η that suits one model is off by a factor of
thousands for another; λ is a distance in weight space and travels better. A single step whose g is an outlier would
undo many good ones: hence the clip.
Everything here is a function of the g's in their order, so a resumed run rebuilds its state from the journal.
Knows nothing about θ, losses or files.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from shared.errors import InvalidRequest

Decay = Literal["constant", "linear"]

RMS_DECAY = 0.98
MEDIAN_WINDOW = 128
MEDIAN_WARMUP = 16


@dataclass(frozen=True, slots=True)
class StepSize:
    """What one step may do.

    Attributes:
        lr: η applied, clipping included; exact in float32.
        is_clipped: Whether clipping made it smaller.
    """

    lr: float
    is_clipped: bool


@dataclass(slots=True)
class StepSizeSchedule:
    """Chooses η for each step.

    Attributes:
        steps: T, the steps of the whole run.
        lr: η of the constant schedule; None normalises by the running RMS of g.
        step_length: λ, where ``lr`` is None.
        sensitive_count: k.
        decay: ``constant`` or ``linear`` to zero at T.
        clip_multiple: m; infinity never clips.
    """

    steps: int
    lr: float | None
    step_length: float
    sensitive_count: int
    decay: Decay = "constant"
    clip_multiple: float = 5.0
    _mean_square: float = field(default=0.0, init=False)
    _seen: int = field(default=0, init=False)
    _magnitudes: deque[float] = field(default_factory=lambda: deque(maxlen=MEDIAN_WINDOW), init=False)

    def next(self, step: int, gradients: Sequence[float]) -> StepSize:
        """Return η for this step and remember its g's; call once per step, in order.

        Args:
            step: Number of the step, from 0.
            gradients: g of each query; a step with a g that is not finite gets η = 0 and is forgotten.
        """
        if not all(map(math.isfinite, gradients)):
            return StepSize(0.0, is_clipped=False)
        mean_square = statistics.fmean(gradient * gradient for gradient in gradients)
        self._mean_square = RMS_DECAY * self._mean_square + (1 - RMS_DECAY) * mean_square
        self._seen += 1
        clip = self._clip(math.sqrt(mean_square))
        self._magnitudes.append(math.sqrt(mean_square))
        return StepSize(float(np.float32(self._base() * self._decay(step) * clip)), is_clipped=clip < 1)

    def _base(self) -> float:
        if self.lr is not None:
            return self.lr
        rms = math.sqrt(self._mean_square / (1 - RMS_DECAY**self._seen))
        return self.step_length / (math.sqrt(self.sensitive_count) * rms) if rms > 0 else 0.0

    def _decay(self, step: int) -> float:
        return 1.0 if self.decay == "constant" else 1 - step / self.steps

    def _clip(self, magnitude: float) -> float:
        if len(self._magnitudes) < MEDIAN_WARMUP:
            return 1.0
        limit = self.clip_multiple * statistics.median(self._magnitudes)
        return limit / magnitude if magnitude > limit > 0 else 1.0


def parse_lr(text: str) -> float | None:
    """Return the constant learning rate, or None for ``auto``.

    Raises:
        InvalidRequest: Neither ``auto`` nor a finite number ≥ 0.
    """
    if text == "auto":
        return None
    try:
        lr = float(text)
    except ValueError:
        lr = math.nan
    if not (math.isfinite(lr) and lr >= 0):
        raise InvalidRequest(f"--lr {text}", needed="auto, or a number from 0 on, such as 1e-6", param="lr")
    return lr
