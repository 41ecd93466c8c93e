"""What an engine tunes: a model at points θ of one flat vector, whatever its values mean to the network.

``methods`` makes one for each method. Knows nothing about tasks, engines or runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from device_client.model.points import Point
from device_client.model.token_batch import TokenBatch

START_STREAM = (1 << 64) - 1
"""Place in a run's perturbation stream of what θ begins with, where that is drawn: a step that no run reaches."""


class TunableModel(Protocol):
    """A model at points θ."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    def initial_theta(self) -> Tensor:
        """Return θ before any step, float32 (k,), a fresh copy."""

    def write_points(self, thetas: Sequence[Point]) -> None:
        """Evaluate at every θ of ``thetas``, float32 (k,) each, from now on."""

    def logits(self, batch: TokenBatch) -> Tensor:
        """Return the next-token logits at the wanted positions, float32 (points, n, vocabulary)."""
