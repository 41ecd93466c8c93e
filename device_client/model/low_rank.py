"""Low-rank factors beside the packed weights of a model: what ``--method lora`` tunes.

    y = W x + (α/r) · B A x          A (r, in) · B (out, r) · θ = (A, B) of every weight in turn, A first

W is the bundle's, with the bundle's own sensitive values. A begins as Gaussian noise of variance 1 / (3·in), B as zeros
(Hu et al., section 4.1; the variance is that of loralib's uniform start), so that a run begins with the bundle's own
logits. Both are rounded once to the compute dtype, as sensitive values are.

Several points run side by side as they do for sensitive values: W is decoded once, its values are the same at each
point, and each point's factors multiply its inputs in library calls of its own, with the bits that it has alone.
Costs 2·r·(in + out) operations a token and weight more, and one more matrix of outputs of one point at a time.
Knows nothing about tasks. Reference: arXiv 2106.09685.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from device_client.model.backends.library_product import aligned
from device_client.model.linear import QuantizedSparseLinear, SensitiveValues
from device_client.model.points import Point
from device_client.model.token_batch import TokenBatch
from device_client.model.tunable_model import START_STREAM, TunableModel
from shared.perturbation import perturbation


class LowRankModel:
    """A model with low-rank factors; they stay with the layers, which then compute with them whoever calls.

    Args:
        base: The model that computes; it stays at its own values.
        linears: The layers that get factors, in the order of θ.
        dtype: Compute dtype.
        rank: r.
        alpha: α.
        seed: Of what A begins with.
    """

    def __init__(
        self,
        base: TunableModel,
        linears: Iterable[QuantizedSparseLinear],
        dtype: torch.dtype,
        *,
        rank: int,
        alpha: int,
        seed: int,
    ) -> None:
        self._base, self._own = base, base.initial_theta()
        self._seed, self._rank = seed, rank
        self._shapes: list[tuple[int, int]] = []
        additions: list[tuple[QuantizedSparseLinear, slice, slice]] = []
        begin = 0
        for linear in linears:
            middle = begin + rank * linear.in_features
            end = middle + linear.out_features * rank
            self._shapes.append((linear.out_features, linear.in_features))
            additions.append((linear, slice(begin, middle), slice(middle, end)))
            begin = end
        self._values = SensitiveValues(torch.zeros(begin, dtype=dtype, device=base.device))
        for linear, first, second in additions:
            linear.addition = _LowRankProduct(self._values, first, second, rank, alpha / rank)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._base.device

    def initial_theta(self) -> Tensor:
        """Return what a run begins with, float32 (k,): A drawn from the seed, B zero."""
        return first_factors(self._shapes, self._rank, self._seed).to(self.device)

    def write_points(self, thetas: Sequence[Point]) -> None:
        """Evaluate at every θ of ``thetas``, float32 (k,), from now on.

        Raises:
            ValueError: Another shape or dtype.
        """
        self._values.write(thetas)
        self._base.write_points([self._own] * len(thetas))

    def logits(self, batch: TokenBatch) -> Tensor:
        """Return the next-token logits at the wanted positions, float32 (points, n, vocabulary)."""
        return self._base.logits(batch)


def first_factors(shapes: Sequence[tuple[int, int]], rank: int, seed: int) -> Tensor:
    """Return what a run begins with, float32 (k,) on the host: A drawn from the seed, B zero.

    Args:
        shapes: (out_features, in_features) of each weight, in the order of θ.
        rank: r.
        seed: The run's.
    """
    drawn = torch.from_numpy(perturbation(seed, START_STREAM, 0, sum(rank * columns for _, columns in shapes)))
    parts, taken = [], 0
    for rows, columns in shapes:
        count = rank * columns
        parts += [drawn[taken : taken + count] * (1 / math.sqrt(3 * columns)), torch.zeros(rows * rank)]
        taken += count
    return torch.cat(parts)


class _LowRankProduct:
    """Adds (α/r) · B A x of every point to a layer's outputs."""

    def __init__(self, values: SensitiveValues, first: slice, second: slice, rank: int, scale: float) -> None:
        self._values, self._first, self._second = values, first, second
        self._rank, self._scale = rank, scale

    def __call__(self, inputs: Tensor, outputs: Tensor) -> None:
        points = self._values.points
        stacked = inputs.reshape(points, -1, inputs.shape[-1])
        added_to = outputs.view(points, -1, outputs.shape[-1])
        for point in range(points):
            first = aligned(self._values.of(self._first, point)).view(self._rank, -1)
            second = aligned(self._values.of(self._second, point)).view(-1, self._rank)
            reduced = torch.mm(aligned(stacked[point]), first.T).mul_(self._scale)
            added_to[point].add_(torch.mm(reduced, second.T))
