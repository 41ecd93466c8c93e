"""ε and η for objectives that are steps of θ: accuracy, F1, exact match, a checker's number.

    ε   = share · rms(θ₀)                 far enough for some row of a batch to change its answer
    η_t = ω·√q / √(T·V),  ω = rms(θ₀)·w   a random walk of T steps moves each value by ω

Neither can be measured as for a loss. The second difference of a step function over ε² is no curvature: it is 0 where
no answer changes and grows like 1/ε² where one does. So the length of the walk is a share of the values' own size, as
``measured_step`` bounds its own. Steps whose differences are 0 count in V and move nothing: the steps that do move are
longer by as much, and Σ‖step‖² is that of T steps with a signal. Where none was seen yet, η is 0.

Nothing goes back to earlier values: a validation that counts right answers is too coarse to say that a step was wrong.
Knows nothing about θ or files. Symbols as in ``schedules``.
"""

from __future__ import annotations

import math

from device_client.tuning.measurements import Sample
from device_client.tuning.settings import TuneSettings

EPSILON_SHARE = 0.05
"""ε as a share of rms(θ₀) where none is given."""

WALK_SHARE = 0.25
"""w."""


class MetricStep:
    """The scale of η for a metric.

    Args:
        settings: T, q and ε.
        value_rms: rms(θ₀).
    """

    def __init__(self, settings: TuneSettings, value_rms: float) -> None:
        self._settings, self._value_rms = settings, value_rms

    @property
    def epsilon(self) -> float:
        """ε as given."""
        return self._settings.epsilon

    def wants_curvature(self, _step: int, /) -> bool:
        """Return False: a step function has none."""
        return False

    def next(self, mean_square: float, _sample: Sample, /) -> float:
        """Return η; 0 where no step has seen a difference yet."""
        if not mean_square > 0:
            return 0.0
        walk = WALK_SHARE * self._value_rms
        return walk * math.sqrt(self._settings.queries / (self._settings.steps * mean_square))

    def validated(self, _loss: float, /) -> bool:
        """Return False."""
        return False
