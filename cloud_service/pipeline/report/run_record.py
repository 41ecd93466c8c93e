"""How one preparation went: machine, plan, time and memory. It stays beside the bundle, never in it.

A bundle is a function of its input alone, so everything that differs between two runs of the same input (times,
machines, workers, peaks) is kept here and reaches the report page as a second argument. ``to_json`` and ``from_json``
let it lie in a workspace between attempts. Knows nothing about how anything was measured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Place = Literal["accelerator", "host"]


@dataclass(frozen=True, slots=True)
class PeakBytes:
    """The most memory in use at any moment, bytes; None where it was not planned, or cannot be measured.

    Attributes:
        planned: What the plan predicted.
        measured: What was seen.
    """

    planned: int | None = None
    measured: int | None = None


@dataclass(frozen=True, slots=True)
class StageRecord:
    """One stage's time.

    Attributes:
        stage: Name of the stage, as ``shared.api.Stage`` has it.
        seconds: Wall time that it took in this process.
        predicted_seconds: What the plan said; None where it said nothing.
        host: Peak memory of the process during the stage, what it held before included.
    """

    stage: str
    seconds: float
    predicted_seconds: float | None = None
    host: PeakBytes = PeakBytes()


@dataclass(frozen=True, slots=True)
class RunRecord:
    """How one preparation went.

    Attributes:
        machine: Processor and core count.
        device: Where the model computed, for example ``cpu`` or the accelerator's name.
        torch_version: Version of torch.
        transformers_version: Version of transformers.
        stages: The stages in order.
        accelerator: Peak memory of the accelerator; of the busiest one where there were several.
        host: Peak memory of the process on the host. With workers of a cluster, neither counts the calibration, which
            is in their memory.
        accumulators: Where the Fisher sums lay.
        passes: Passes over the calibration sequences, one per group of blocks.
        recomputes_activations: Whether activations were computed again in the backward pass.
        launcher: How calibration shards were run, for example ``local`` or ``ray``.
        workers: Processes that shared the shards.
        is_resumed: Whether an earlier attempt did part of the work; the times are this attempt's alone.
        bundle_digest: Digest of the manifest, once there is one.
        bundle_bytes: Bytes of all distinct blobs, once they are stored.
    """

    machine: str
    device: str
    torch_version: str
    transformers_version: str
    stages: tuple[StageRecord, ...]
    accelerator: PeakBytes = PeakBytes()
    host: PeakBytes = PeakBytes()
    accumulators: Place = "host"
    passes: int = 1
    recomputes_activations: bool = False
    launcher: str = "local"
    workers: int = 1
    is_resumed: bool = False
    bundle_digest: str | None = None
    bundle_bytes: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return a form that ``from_json`` reads back."""
        return dataclasses.asdict(self) | {"stages": [dataclasses.asdict(stage) for stage in self.stages]}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> RunRecord:
        """Return the record that ``to_json`` described."""
        parts = {
            "stages": tuple(_stage_from_json(stage) for stage in record["stages"]),
            "accelerator": PeakBytes(**record["accelerator"]),
            "host": PeakBytes(**record["host"]),
        }
        return cls(**{**record, **parts})


def _stage_from_json(record: Mapping[str, Any]) -> StageRecord:
    return StageRecord(**{**record, "host": PeakBytes(**record.get("host", {}))})
