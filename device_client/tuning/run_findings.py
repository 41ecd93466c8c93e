"""What a run's records say: how many forward passes it spent, and what they found.

Pure functions of the journal; know nothing about models or files.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from device_client.tuning.journal import StepFlags, StepRecord
from device_client.tuning.measurements import Sample, summarise
from device_client.tuning.settings import TuneSettings


def forward_passes(records: Sequence[StepRecord], settings: TuneSettings) -> int:
    """Return the passes over a batch that the steps spent, those that measured curvature included."""
    measured_steps = sum(math.isfinite(record.curvature) for record in records)
    sides = 2 if settings.directions == "two-sided" else 1
    return settings.queries * (sides * (len(records) - measured_steps) + 2 * measured_steps) + measured_steps


def sample_of(record: StepRecord) -> Sample:
    """Return what a step measured."""
    return Sample.of(record.gradients, record.signal, record.curvature, record.clean_loss)


def measured(records: Sequence[StepRecord], settings: TuneSettings) -> dict[str, float | None]:
    """Return what the samples of all steps come to, as result.json has it; null where nothing was found."""
    kept = [record for record in records if StepFlags.SKIPPED not in record.flags]
    found = summarise(map(sample_of, kept), settings.batch_size)
    mean_lr = statistics.fmean(record.lr for record in kept) if kept else math.nan
    values = {
        "signal_share": found.signal_share,
        "curvature": found.curvature,
        "useful_batch": found.useful_batch(settings.batch_size),
        "expected_fall_per_step": found.expected_fall(mean_lr, settings.queries),
    }
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
