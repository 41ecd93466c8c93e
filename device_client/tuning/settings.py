"""What decides a run besides its bundle and its rows: read by the parser, the loop, the schedules and the journal.

Every default of ``zo-device tune`` stands here once. Imports no torch, so that the parser costs nothing.
Knows nothing about files, models or machines.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from device_client.planning.methods import METHODS, MethodName
from device_client.planning.tuned_blocks import ALL_BLOCKS
from shared.errors import InvalidRequest
from shared.perturbation import Distribution

if TYPE_CHECKING:
    from device_client.tasks.scoring import Objective

Gradient = Literal["zeroth-order", "first-order"]
"""Where a step's direction comes from."""

Metric = Literal["accuracy", "f1", "exact-match", "checker"]
"""What may be raised instead of lowering the loss; higher is better."""

Decay = Literal["constant", "linear"]
Directions = Literal["two-sided", "one-sided"]

ANSWER_TOKENS = 16
"""Most tokens of an answer that a metric looks at, where the run does not say."""

_FIRST_STEP_LENGTH = 0.07
"""What the identity of runs with a constant η contains since the first version, where it decides nothing."""


@dataclass(frozen=True, slots=True)
class TuneSettings:
    """What decides a run, besides bundle and rows.

    Attributes:
        method: What is tuned; see ``planning.methods``.
        gradient: Where a step's direction comes from: forward passes alone, or a backward pass.
        steps: T, planned; the measured step and the decay are functions of it.
        batch_size: Rows per step.
        epsilon: ε to begin with; a measured step doubles it where curvature is lost in rounding.
        epsilon_share: ε as a share of rms(θ₀), in the place of ``epsilon``.
        lr: Constant η; Adam's in first order.
        step_length: λ, the length of a typical step. Where neither it nor ``lr`` is given, the step is measured.
        decay: ``constant`` or ``linear``.
        clip_multiple: g is clipped at so many times its running median.
        queries: Directions per step.
        directions: ``two-sided`` compares θ ± ε·z; ``one-sided`` compares the directions of a step with each other.
        distribution: Of z.
        seed: Of the perturbations and of the order of rows.
        objective: The loss; None takes ``candidates`` where every row has some.
        metric: What is raised instead; the loss is then only reported.
        answer_tokens: Most tokens of an answer that a metric has the model write.
        checker: The command that says how good an answer is.
        checker_digest: Of the files that the command names.
        validate_every: Steps between validations; None is a twentieth of the run.
        patience: Validations without a new best before it stops early; None never.
        blocks: Which decoder blocks are tuned: ``all``, ``upper:N`` or ``auto``; see ``planning.tuned_blocks``.

    Raises:
        InvalidRequest: Both ``lr`` and ``step_length`` are given, one-sided directions have nothing to compare with, or
            a metric or an exact gradient is asked for what has none here.
    """

    method: MethodName = "sparse"
    gradient: Gradient = "zeroth-order"
    steps: int = 400
    batch_size: int = 16
    epsilon: float = 1e-3
    epsilon_share: float | None = None
    lr: float | None = None
    step_length: float | None = None
    decay: Decay = "linear"
    clip_multiple: float = 5.0
    queries: int = 1
    directions: Directions = "two-sided"
    distribution: Distribution = "gaussian"
    seed: int = 0
    objective: Objective | None = None
    metric: Metric | None = None
    answer_tokens: int | None = None
    checker: str | None = None
    checker_digest: str | None = None
    validate_every: int | None = None
    patience: int | None = None
    blocks: str = ALL_BLOCKS

    def __post_init__(self) -> None:
        if self.lr is not None and self.step_length is not None:
            raise InvalidRequest(
                f"both --lr {self.lr:g} and --step {self.step_length:g}", needed="one of them", param="lr"
            )
        if self.directions == "one-sided" and self.queries == 1:
            raise InvalidRequest(
                "--directions one-sided with one direction per step",
                needed="two or more: each is compared with the mean of the others",
                next_step="--queries 4",
                param="queries",
            )
        if self.metric is not None and self.gradient == "first-order":
            raise InvalidRequest(
                f"--gradient first-order with the objective {self.metric}, which has no gradient",
                needed="an objective that changes smoothly: the loss",
                next_step="leave --gradient out: forward passes alone raise such an objective",
                param="gradient",
            )
        if self.gradient == "first-order" and not METHODS[self.method].has_exact_gradient:
            raise InvalidRequest(
                f"--gradient first-order with --method {self.method}",
                needed="the sensitive values: the exact gradient is computed for those alone",
                next_step="--method sparse, or leave --gradient out",
                param="method",
            )
        if self.method != "sparse" and self.metric not in (None, "accuracy"):
            raise InvalidRequest(
                f"--method {self.method} with the objective {self.metric}, for which the model writes answers",
                needed="the sensitive values: answers are written at those alone",
                next_step="--method sparse, or --objective accuracy or loss",
                param="method",
            )

    @property
    def is_step_measured(self) -> bool:
        """Whether the step is measured, not chosen."""
        return self.is_step_automatic and self.gradient == "zeroth-order" and self.metric is None

    @property
    def is_step_automatic(self) -> bool:
        """Whether neither η nor a length is chosen."""
        return self.lr is None and self.step_length is None

    @property
    def validation_interval(self) -> int:
        """Steps between validations: as asked, or a twentieth of the run."""
        return self.validate_every or max(1, self.steps // 20)

    def decay_at(self, step: int) -> float:
        """Return the share of η that a step takes: 1, or 1 − t/T."""
        return 1.0 if self.decay == "constant" else 1 - step / self.steps

    def identity(self, objective: Objective | None) -> dict[str, Any]:
        """Return what a run is recognised by; what an older version knew is named as it named it.

        Args:
            objective: The loss that was decided on; None where rows have no answer.
        """
        fields = asdict(self) | {"objective": objective, "validate_every": self.validation_interval}
        fields |= METHODS[self.method].recorded
        later: dict[str, Any] = {
            "directions": "two-sided",
            "gradient": "zeroth-order",
            "blocks": ALL_BLOCKS,
            "method": "sparse",
        }
        later |= dict.fromkeys(("metric", "epsilon_share", "answer_tokens", "checker", "checker_digest"))
        for name in (name for name, default in later.items() if fields[name] == default):
            del fields[name]
        if self.lr is not None:
            fields["step_length"] = _FIRST_STEP_LENGTH
        return fields


DEFAULTS = TuneSettings()


def parse_step(text: str) -> float | None:
    """Return the length λ of a typical step, or None for ``auto``.

    Raises:
        argparse.ArgumentTypeError: Neither ``auto`` nor a finite number above 0; the parser adds the option's name.
    """
    length = None if text == "auto" else _number(text)
    if length is not None and not length > 0:
        raise argparse.ArgumentTypeError(f"{text!r}; needed: auto, or a length above 0, such as 0.5")
    return length


def parse_lr(text: str) -> float:
    """Return the paper's constant learning rate.

    Raises:
        argparse.ArgumentTypeError: Not a finite number ≥ 0; the parser adds the option's name.
    """
    lr = _number(text)
    if not lr >= 0:
        raise argparse.ArgumentTypeError(f"{text!r}; needed: a number from 0 on, such as 1e-6")
    return lr


def _number(text: str) -> float:
    """Return a finite number, or NaN where it is something else."""
    try:
        number = float(text)
    except ValueError:
        return math.nan
    return number if math.isfinite(number) else math.nan
