"""First-order fine-tuning of the linear weights on task rows: plain autograd, the movement that Figure 3 watches.

    w ← w − η · step(∇ 1/B Σ_b L_b)        Adam, or SGD

Symbols: L_b the mean loss of row b's answer, in nats per token · B rows a batch · η ``lr``.
Rows of a step are drawn without replacement by (seed, step). Costs a forward and a backward pass per row and, beside
the network, 4 bytes per weight for the gradient and 8 more for Adam. Nothing is published: this is for measuring only,
and a device never does it. Knows nothing about masks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from cloud_service.pipeline.calibration.sequences import Calibration
from cloud_service.pipeline.fisher.squared_gradients import sequence_loss
from shared.errors import Diverged
from shared.perturbation import random_generator

OptimizerName = Literal["adam", "sgd"]

_BATCH_STREAM = 1 << 61
"""Step number of the first batch's draw: apart from those of the calibration's and the mask's draws."""


@dataclass(frozen=True, slots=True)
class FirstOrderSettings:
    """How to fine-tune.

    Attributes:
        optimizer: ``adam``, or ``sgd`` without momentum; neither decays weights.
        lr: Learning rate η.
        batch: Rows of each step B; all rows where there are fewer.
        seed: Of the rows' draws.
    """

    optimizer: OptimizerName = "adam"
    lr: float = 1e-5
    batch: int = 16
    seed: int = 0


class FirstOrderTuner:
    """Fine-tunes a network's weights in place.

    Args:
        network: The model, without dropout, in float32: smaller floats would swallow the updates.
        weights: The weights that change, by name.
        rows: What to learn.
        settings: How.
    """

    def __init__(
        self, network: nn.Module, weights: Mapping[str, nn.Parameter], rows: Calibration, settings: FirstOrderSettings
    ) -> None:
        self._network, self._weights, self._rows, self._settings = network, weights, rows, settings
        make = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.SGD
        self._optimizer: torch.optim.Optimizer = make(list(weights.values()), lr=settings.lr)
        self.step = 0

    def run_until(self, step: int, *, after_row: Callable[[], None] = lambda: None) -> None:
        """Take the steps up to ``step``.

        Raises:
            Diverged: The loss is not finite.
        """
        with _gradients_of(self._weights):
            while self.step < step:
                self._take_step(after_row)
                self.step += 1

    def _take_step(self, after_row: Callable[[], None]) -> None:
        drawn = random_generator(self._settings.seed, _BATCH_STREAM + self.step).permutation(len(self._rows))
        batch = drawn[: self._settings.batch].tolist()
        for row in batch:
            loss = sequence_loss(self._network, self._rows, row)
            if not torch.isfinite(loss):
                raise Diverged(
                    f"the loss of step {self.step + 1} is not finite",
                    needed="a finite loss",
                    next_step=f"lower the learning rate: --lr {self._settings.lr / 10:g}",
                )
            (loss / len(batch)).backward()  # type: ignore[no-untyped-call]
            after_row()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)


@torch.no_grad()
def mean_answer_loss(network: nn.Module, rows: Calibration) -> float:
    """Return the mean over all rows of ``sequence_loss``."""
    return sum(float(sequence_loss(network, rows, row)) for row in range(len(rows))) / len(rows)


@contextmanager
def _gradients_of(weights: Mapping[str, nn.Parameter]) -> Iterator[None]:
    for weight in weights.values():
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for weight in weights.values():
            weight.requires_grad_(False)
            weight.grad = None
