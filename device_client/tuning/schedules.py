"""How far each step goes: measured, normalised to a length, or constant.

    measured   η_t = ω·√q / √(T·V)               of ``measured_step``                          the default
    length     η_t = λ / √(k·V)                  a typical step ‖η·g·z‖ is as long as asked
    constant   η_t = η                           the paper's plain ZO-SGD
    all        η_t · decay(t),  decay = 1 or 1 − t/T
    clipping   η_t · min(1, m·median|g| / |g|)   median over the last 128 steps, once 16 were seen

Symbols: g projected gradient · V running mean of g², bias-corrected, this step included · k sensitive values · T steps
in all. A single step whose g is an outlier would undo many good ones: hence the clip.
Everything here is a function of what the journal and the validations hold, in their order, so a resumed run rebuilds
its state from them. Knows nothing about θ, losses or files.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from device_client.tuning.measurements import Sample
from device_client.tuning.settings import TuneSettings

MEAN_SQUARE_DECAY = 0.98
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


class Scale(Protocol):
    """Where η comes from before decay and clipping."""

    @property
    def epsilon(self) -> float:
        """ε of the next step."""

    def wants_curvature(self, step: int, /) -> bool:
        """Whether a step should measure tr(H)."""

    def next(self, mean_square: float, sample: Sample, /) -> float:
        """Return η, given V so far and what this step measured."""

    def validated(self, loss: float, /) -> bool:
        """Take the next validation's loss, the first before any step; return whether to go back to the best θ."""


class ChosenScale:
    """η that is given: a constant, or what makes a typical step as long as asked.

    Args:
        settings: One of ``lr`` and ``step_length`` is set.
        sensitive_count: k.
    """

    def __init__(self, settings: TuneSettings, sensitive_count: int) -> None:
        self._settings, self._root = settings, math.sqrt(sensitive_count)

    @property
    def epsilon(self) -> float:
        """ε as given."""
        return self._settings.epsilon

    def wants_curvature(self, _step: int, /) -> bool:
        """Return False: nothing is measured."""
        return False

    def next(self, mean_square: float, _sample: Sample, /) -> float:
        """Return η, or λ / √(k·V)."""
        if self._settings.lr is not None:
            return self._settings.lr
        length = self._settings.step_length or 0.0
        return length / (self._root * math.sqrt(mean_square)) if mean_square > 0 else 0.0

    def validated(self, _loss: float, /) -> bool:
        """Return False: who chooses the step decides."""
        return False


class StepSizeSchedule:
    """Chooses η for each step.

    Args:
        settings: Decay and clipping.
        scale: η before them; also says with which ε, when to measure curvature and when to go back.
    """

    def __init__(self, settings: TuneSettings, scale: Scale) -> None:
        self._settings, self.scale = settings, scale
        self._mean_square, self._seen = 0.0, 0
        self._magnitudes: deque[float] = deque(maxlen=MEDIAN_WINDOW)

    def next(self, step: int, sample: Sample) -> StepSize:
        """Return η for this step and remember what it measured; call once per step, in order.

        Args:
            step: Number of the step, from 0.
            sample: What it measured; a step with a g that is not finite gets η = 0 and is forgotten.
        """
        mean_square = sample.mean_square
        if not math.isfinite(mean_square):
            return StepSize(0.0, is_clipped=False)
        self._mean_square = MEAN_SQUARE_DECAY * self._mean_square + (1 - MEAN_SQUARE_DECAY) * mean_square
        self._seen += 1
        clip = self._clip(math.sqrt(mean_square))
        self._magnitudes.append(math.sqrt(mean_square))
        scale = self.scale.next(self._mean_square / (1 - MEAN_SQUARE_DECAY**self._seen), sample)
        return StepSize(float(np.float32(scale * self._settings.decay_at(step) * clip)), is_clipped=clip < 1)

    def _clip(self, magnitude: float) -> float:
        if len(self._magnitudes) < MEDIAN_WARMUP:
            return 1.0
        limit = self._settings.clip_multiple * statistics.median(self._magnitudes)
        return limit / magnitude if magnitude > limit > 0 else 1.0
