"""Makes a zeroth-order run's θ again from its journal and validations: without a row, without a forward pass.

    θ₀                       the bundle's own values, or factors that the run's seed draws
    θ ← θ − η·g·z, T times   the loop that resumes runs, every step of which is on record

Every operation is one float32 operation in a fixed order and z comes from a stateless stream, so θ has the same bits
on every machine and backend. What a model computes from θ has the same bits on the same backend and format.
Costs k random numbers and one pass over θ for each query of a step. Knows nothing about models.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor

from device_client.model.backends.choose import BackendOptions
from device_client.model.low_rank import first_factors
from device_client.planning.methods import LowRankFactors, PrefixStates, TunedPart
from device_client.planning.tuned_blocks import entries_of
from device_client.tuning.engines import rms, scale_of, with_epsilon
from device_client.tuning.evaluation import Evaluation
from device_client.tuning.journal import JournalHeader, open_journal
from device_client.tuning.loop import TuningLoop
from device_client.tuning.loop_interface import Outcome
from device_client.tuning.perturbations import PerturbationStream, drawing_of
from device_client.tuning.run_directory import RunDirectory
from device_client.tuning.schedules import StepSizeSchedule
from device_client.tuning.settings import TuneSettings
from device_client.tuning.zeroth_order import ZerothOrder
from shared.bundle.read import Bundle
from shared.errors import IntegrityError, InvalidRequest


def replay(
    run: RunDirectory,
    header: JournalHeader,
    validations: Sequence[tuple[int, Evaluation]],
    settings: TuneSettings,
    theta: Tensor,
    backend: BackendOptions,
) -> Outcome:
    """Return what a finished run came to.

    Args:
        run: Holds journal.bin and nothing else; the other files of a run are written beside it.
        header: What the journal belongs to.
        validations: Steps done, and what was found, in order.
        settings: The run's.
        theta: Where it began, float32 (k,).
        backend: What draws perturbations; all draw the same.

    Raises:
        IntegrityError: A step or a validation is missing.
        Conflict: The journal belongs to something else.
    """
    value_rms = rms(theta)
    settings = with_epsilon(settings, value_rms)
    drawing = drawing_of(settings.distribution, backend)
    draw = PerturbationStream(settings.seed, theta.numel(), drawing, torch.device("cpu"))
    schedule = StepSizeSchedule(settings, scale_of(settings, theta.numel(), value_rms))
    recorded = _Recorded(validations)
    with open_journal(run.journal, header) as journal:
        engine = ZerothOrder(recorded, draw, schedule, settings)
        return TuningLoop(recorded, engine, theta, settings, journal, run, recorded, time.monotonic).run()


def starting_values(bundle: Bundle, part: TunedPart, seed: int) -> Tensor:
    """Return where a run began, float32 (k,).

    Raises:
        InvalidRequest: It began with what a model computes.
    """
    entries = entries_of(bundle.config, part.blocks)
    match part.method:
        case LowRankFactors(rank=rank):
            return first_factors([entry.shape for entry in entries], rank, seed)
        case PrefixStates():
            raise InvalidRequest(
                "a run of --method prefix, which begins with what the model computes",
                needed="a run of --method sparse or lora for a journal",
                next_step="share its values: --as values",
            )
        case _:
            sensitive = bundle.open_sensitive()
            return torch.cat([torch.from_numpy(sensitive.read(entry.name)[1].astype("f4")) for entry in entries])


class _Recorded:
    """Stands where a loop expects rows: validations come out as they are on record, and a step cannot be made."""

    def __init__(self, validations: Sequence[tuple[int, Evaluation]]) -> None:
        self._validations = list(reversed(validations))
        self._steps_done = 0

    def validate(self, _theta: Tensor) -> Evaluation:
        if not self._validations:
            self._fail()
        self._steps_done, found = self._validations.pop()
        return found

    def validated(self, steps_done: int, _evaluation: Evaluation, *, is_best: bool) -> None:  # noqa: ARG002  a protocol's
        if steps_done != self._steps_done:
            self._fail()

    def shrink(self) -> bool:
        return False

    def batch(self, step: int) -> int:
        return step

    def note(self, text: str) -> None:
        """Say nothing: that a run continues from its journal is no news here."""

    def _fail(self, *_: object, **__: object) -> NoReturn:
        raise IntegrityError(
            "the journal lacks a step or a validation of the run",
            needed="the journal of a finished run",
            next_step="finish the run, or share its values: --as values",
        )

    losses = stepped = _fail
