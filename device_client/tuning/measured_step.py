"""A step from what the run measures: no number that was fitted on a model.

    η_t = min( ω·√q / √(T·V),  q / t )        ω = 2⁻ʳ · min( √(L / 2t),  rms(θ₀) )        t = max( f, tr(H)₋ )

ω is the length, per value, of the random walk that a run of T steps is allowed. Every step adds noise of η²·V/q to
every value; after T of them the walk costs ½·ω²·t nats. √(L/2t) lets it cost a quarter of the loss L, the most that
there still is to gain: half the step of Ghadimi and Lan, √(2Δ/(S·σ²·T)), with S·σ² = V·t for zeroth order and L for
what can be gained, Δ; and what the walk costs along flat directions no later step takes back. q/t is their 1/S, beyond
which steps overshoot. The quadratic model holds no farther than the values are long: hence rms(θ₀).
The decay comes on top: it takes away again most of what the walk has cost.

L is the mean of the last 32 steps' losses, and never more than the bundle's: a model that prefers one label's word
starts with two or three times the loss that rows explain, loses it within few steps, and would take steps too long ever
after. Where the loss rises instead, steps must not grow with it.

The trace of the curvature is measured twice. f, the mean of the last 32 steps' E[gᵢ²], comes from the passes that are
made anyway and varies little; it is the trace of the Fisher matrix, which is the Hessian's for a model that is right
about its rows, and too small where a row's loss is a mean over many tokens. Second differences are right about every
loss, but samples of few rows are often negative and deviate by more than their mean: they are taken in each of the
first 8 steps, during which η grows in line, and in one of 16 later, and tr(H)₋ is the mean of the last 32 less twice
its standard error, so that it counts where it is clearly larger. Where ε²·tr(H) is too small beside the loss to be more
than rounding, ε doubles (ε ≤ rms(θ₀)/4).

r counts roll-backs: where a validation, which is of few rows, has lost more than half of what the best one had gained
and more than four times what the walk since then should have cost, the run goes back to the best θ and every later step
is half as long.

Symbols as in ``schedules`` and ``measurements``; S smoothness and σ² noise of the paper.
A function of recorded numbers alone. Knows nothing about θ or files.
Reference: Ghadimi and Lan 2013 (arXiv 1309.5549), Corollary 2.2.
"""

from __future__ import annotations

import math
import statistics
from collections import deque

from device_client.tuning.measurements import Sample, clear_mean
from device_client.tuning.settings import TuneSettings

WARMUP_STEPS = 8
MEASURE_EVERY = 16
WINDOW = 32
RESOLVED = 1e-4
"""ε²·t as a share of the loss that is clear of what rounding does in float32."""
TOLERANCE = 4.0
"""Times what the walk should have cost."""
LEAST_LOSS = 0.01
"""A rise of the validation loss by less of the starting loss undoes nothing."""


class MeasuredStep:
    """The measured scale of η, the ε it is measured with, and when to go back to the best θ.

    Attributes:
        roll_backs: r.

    Args:
        settings: T, q, decay, and ε to begin with.
        value_rms: rms(θ₀).
        resolved: ε²·t as a share of the loss that is clear of rounding.
    """

    def __init__(self, settings: TuneSettings, value_rms: float, resolved: float = RESOLVED) -> None:
        self._resolved = resolved
        self._settings, self._epsilon, self._value_rms = settings, settings.epsilon, value_rms
        self._curvatures: deque[float] = deque(maxlen=WINDOW)
        self._row_squares: deque[float] = deque(maxlen=WINDOW)
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self._steps_seen = self._measured = self.roll_backs = 0
        self._start_loss = self._best_loss = math.nan
        self._tolerated = self._walked = 0.0

    @property
    def epsilon(self) -> float:
        """ε of the next step."""
        return self._epsilon

    def wants_curvature(self, step: int) -> bool:
        """Whether a step should measure tr(H)."""
        return step < WARMUP_STEPS or step % MEASURE_EVERY == 0

    def next(self, mean_square: float, sample: Sample) -> float:
        """Return η, given V so far and what this step measured."""
        self._losses.append(sample.loss)
        self._row_squares.append(sample.row_square(self._settings.batch_size))
        self._walked += self._settings.decay_at(self._steps_seen) ** 2 / self._settings.steps
        self._steps_seen += 1
        if math.isfinite(sample.curvature):
            self._resolve(sample.curvature)
        if not mean_square > 0:
            return 0.0
        trace = max(statistics.fmean(self._row_squares), clear_mean(self._curvatures))
        walk, most = self._value_rms, math.inf
        if trace > 0:
            walk = min(walk, math.sqrt(min(self._start_loss, statistics.fmean(self._losses)) / (2 * trace)))
            most = self._settings.queries / trace
        walk *= 0.5**self.roll_backs
        self._tolerated = TOLERANCE * walk * walk * trace / 2
        warm = min(1.0, self._steps_seen / WARMUP_STEPS)
        return warm * min(walk * math.sqrt(self._settings.queries / (self._settings.steps * mean_square)), most)

    def _resolve(self, curvature: float) -> None:
        """Keep a second difference, and double ε where it is not clear of rounding."""
        self._curvatures.append(curvature)
        if self._measured < WARMUP_STEPS and self._epsilon**2 * abs(curvature) < self._resolved * self._start_loss:
            self._epsilon = max(self._epsilon, min(2 * self._epsilon, self._value_rms / 4))
        self._measured += 1

    def validated(self, loss: float) -> bool:
        """Take the next validation's loss, the first before any step; return whether to go back to the best θ."""
        if math.isnan(self._start_loss):
            self._start_loss = self._best_loss = loss
        if loss <= self._best_loss:
            self._best_loss, self._walked = loss, 0.0
            return False
        gained = self._start_loss - self._best_loss
        if loss - self._best_loss <= max(gained / 2, self._tolerated * self._walked, LEAST_LOSS * self._start_loss):
            return False
        self.roll_backs += 1
        self._walked = 0.0
        return True
