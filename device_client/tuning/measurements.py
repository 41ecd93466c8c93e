"""What the losses of a step tell about the landscape: signal, noise and curvature, without a backward pass.

    V = E[g²]         mean square of g: the squared length of a batch's gradient (a little more one-sided)
    s = ‖ḡ‖²          squared length of the mean gradient; of one direction  (Σ gᵢ)² − Σ gᵢ²  over  B·(B − 1)
    f = E[gᵢ²]        squared length of a row's gradient, B·g² − (B − 1)·s: the trace of the empirical Fisher matrix
    t = tr(H)         trace of the Hessian; of q directions  (mean of L₊ + L₋  −  2·L₀) / ε²

gᵢ is row i's own difference over the same distance. A row paired with itself would count its noise as signal, so only
pairs i ≠ j are averaged: unbiased for every B ≥ 2. The single samples are noisy (one direction of thousands), their
means over a run are not.

    ρ = s / V                       signal share: what the rows of a batch agree on
    B·(1/ρ − 1)                     batch at which noise and signal are equal; more rows per step buy little
    η·s − η²·V·t / 2q               expected fall of the loss by one step of η

Costs nothing but one pass at θ where t is wanted. Pure functions of numbers; knows nothing about models, θ or files.
References: Gilmer et al. 2018 (arXiv 1812.06162) for the noise scale; Hutchinson's estimator for the trace.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sample:
    """What one step measured.

    Attributes:
        mean_square: Mean of g² over its directions.
        signal: Estimate of s, may be negative; NaN where a step has one row.
        curvature: Estimate of t, may be negative; NaN where it was not measured.
        loss: Mean of the losses of all passes, nats per answer.
    """

    mean_square: float
    signal: float = math.nan
    curvature: float = math.nan
    loss: float = math.nan

    @classmethod
    def of(cls, gradients: Sequence[float], signal: float, curvature: float, loss: float) -> Sample:
        """Return the sample of a step with these g; its mean square is not finite where one of them is not."""
        return cls(statistics.fmean(gradient * gradient for gradient in gradients), signal, curvature, loss)

    def row_square(self, batch_size: int) -> float:
        """Return f; of a single row it is g²."""
        if math.isnan(self.signal):
            return self.mean_square
        return batch_size * self.mean_square - (batch_size - 1) * self.signal


@dataclass(frozen=True, slots=True)
class Findings:
    """What the samples of many steps come to; NaN where nothing was measured.

    Attributes:
        mean_square: V.
        signal: s, at least 0.
        curvature: f, or t where that is clearly larger: of few rows, samples of t are often negative.
    """

    mean_square: float
    signal: float
    curvature: float

    @property
    def signal_share(self) -> float:
        """ρ, 0 … 1."""
        return min(1.0, self.signal / self.mean_square) if self.mean_square > 0 else math.nan

    def useful_batch(self, batch_size: int) -> float:
        """Return the rows at which noise and signal are equal; infinity where no signal was found."""
        share = self.signal_share
        return batch_size * (1 / share - 1) if share > 0 else share + math.inf

    def expected_fall(self, lr: float, queries: int) -> float:
        """Return the nats by which one step of η is expected to lower the loss; negative where it raises it."""
        return lr * self.signal - lr * lr * self.mean_square * self.curvature / (2 * queries)


def pair_signal(differences: Sequence[float]) -> float:
    """Return an estimate of ‖ḡ‖² from each row's g along one direction, unbiased; NaN for a single row."""
    rows = len(differences)
    if rows < 2:
        return math.nan
    total = math.fsum(differences)
    return (total * total - math.fsum(g * g for g in differences)) / (rows * (rows - 1))


def curvature(clean_loss: float, loss: float, epsilon: float) -> float:
    """Return an estimate of tr(H) at θ.

    Args:
        clean_loss: Mean of L₊ and L₋ over a step's directions.
        loss: L at θ itself, of the same rows.
        epsilon: ε.
    """
    return 2 * (clean_loss - loss) / (epsilon * epsilon)


def summarise(samples: Iterable[Sample], batch_size: int) -> Findings:
    """Return the means of the samples, of so many rows each; what a sample does not have is left out."""
    found = list(samples)
    squares = _finite_mean(sample.row_square(batch_size) for sample in found)
    second_differences = clear_mean([sample.curvature for sample in found if math.isfinite(sample.curvature)])
    return Findings(
        mean_square=_finite_mean(sample.mean_square for sample in found),
        signal=max(0.0, _finite_mean(sample.signal for sample in found)),
        curvature=max(squares, second_differences),
    )


def clear_mean(samples: Collection[float]) -> float:
    """Return their mean less twice its standard error: what the mean clearly exceeds; 0 of fewer than two samples."""
    if len(samples) < 2:
        return 0.0
    return statistics.fmean(samples) - 2 * statistics.stdev(samples) / math.sqrt(len(samples))


def _finite_mean(values: Iterable[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return statistics.fmean(finite) if finite else math.nan
