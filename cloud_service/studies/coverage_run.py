"""One coverage measurement from a model's name to its figures: resolve, rank by the text, draw the rows, measure.

The text's Fisher pass is that of a preparation: by the memory plan, on the launcher, in shards whose totals lie in a
workspace. What follows needs the network to hold still or to be fine-tuned, so it takes place in this process, with
the network and one Fisher diagonal beside it, whatever the plan's passes.
Selecting and measuring rows are two halves of the rows drawn; where steps are taken, they are taken on these rows and
more of the same file, up to 1,000, as the paper trains on 1,000. Knows nothing about the command line.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from cloud_service.pipeline.calibration.documents import read_rows
from cloud_service.pipeline.calibration.rows import calibration_examples
from cloud_service.pipeline.calibration.sequences import Calibration, tokens_digest
from cloud_service.pipeline.model.load_model import LoadedModel
from cloud_service.pipeline.named_input import NamedInput
from cloud_service.pipeline.opening.identity import ResolvedInput
from cloud_service.pipeline.opening.open_model import open_model
from cloud_service.pipeline.opening.planned_model import Means, PlannedModel
from cloud_service.progress import ProgressSink
from cloud_service.sources import SourcePolicy, TextSource, locate_calibration
from cloud_service.studies.coverage import (
    Coverage,
    CoverageData,
    Ranking,
    count_passes,
    measure_coverage,
    rank_largest,
)
from cloud_service.studies.first_order import FirstOrderSettings
from shared.api import OWN_ROWS, CalibrationSpec, EvaluationSpec, GgufFileName, Message, Stage
from shared.errors import DataError
from shared.tasks.datasets import Record

_DEFAULT_ROWS = 256
_TRAINING_ROWS = 1000


class CoverageRequest(Message):
    """What to measure.

    Attributes:
        model: Hub id, a folder or a GGUF file.
        revision: Hub revision; None means the default branch.
        gguf_file: Name of a GGUF file in the folder or repository.
        calibration: The text whose gradients choose the bundle's mask.
        task: The task's rows; ``sequences`` is not used.
        rows: Rows that select and measure, half each; None means 256, or all where there are fewer.
        steps: Steps of first-order fine-tuning to look at.
        every: Steps from one look to the next; None means a tenth of them.
        optimizer: ``adam`` or ``sgd``.
        lr: Learning rate.
        batch: Rows of each step.
    """

    model: Annotated[str, Field(min_length=1, max_length=4096)]
    revision: str | None = None
    gguf_file: GgufFileName | None = None
    calibration: CalibrationSpec = CalibrationSpec()
    task: CalibrationSpec
    rows: Annotated[int, Field(ge=4, le=65536)] | None = None
    steps: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    every: Annotated[int, Field(ge=1)] | None = None
    optimizer: Literal["adam", "sgd"] = "adam"
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-5
    batch: Annotated[int, Field(ge=1, le=65536)] = 16

    @property
    def named_input(self) -> NamedInput:
        """The model and the text that is ranked by: nothing is quantised or evaluated."""
        evaluation = EvaluationSpec(documents=0)
        return NamedInput(
            self.model,
            self.revision,
            self.calibration,
            evaluation,
            settings={"study": "coverage"},
            gguf_file=self.gguf_file,
            needs_whole_network=True,
        )

    @property
    def moments(self) -> list[int]:
        """Steps to look at: 0, every so many, and the last."""
        every = self.every or max(1, self.steps // 10)
        return sorted({*range(0, self.steps, every), self.steps})

    @property
    def tuning(self) -> FirstOrderSettings:
        """How to fine-tune."""
        return FirstOrderSettings(self.optimizer, self.lr, self.batch, self.task.seed)


@dataclass(frozen=True, slots=True)
class MeasuredCoverage:
    """The figures, and what they were measured on.

    Attributes:
        coverage: The figures.
        about: Model, text, task and settings, JSON-ready; no path.
    """

    coverage: Coverage
    about: dict[str, Any]


def run_coverage(
    request: CoverageRequest,
    policy: SourcePolicy,
    progress: ProgressSink,
    *,
    workspace: Path | None = None,
    means: Means | None = None,
) -> MeasuredCoverage:
    """Measure what ``request`` asks for.

    Args:
        request: What to measure.
        policy: What may be read.
        progress: Told about every backward pass.
        workspace: A folder of this measurement alone, for the text's Fisher totals: the same request goes on from
            there, and it is gone at the end. None means a temporary one.
        means: What to do it with; None means this process and all memory of all CUDA devices, else of the CPU.

    Raises:
        ZoError: The model, the text, the rows or a step; the subclass says who can act.
    """
    rows = locate_calibration(request.task, policy, param="--task-data")
    with (
        _folder(workspace) as folder,
        open_model(request.named_input, workspace=folder, policy=policy, progress=progress) as opened,
    ):
        planned = opened.plan(means or Means())
        data = _read_rows(request, rows, planned)
        text, _ = opened.read_texts(planned)
        ranking = rank_largest(opened.estimate_fisher(planned, text).diagonal().items())
        # Small updates vanish in 16 bits.
        model = planned.load(torch.float32 if request.steps else None)
        coverage = _measure(request, model, ranking, data, progress)
    return MeasuredCoverage(coverage, _about(request, opened.source, rows, text, data))


@contextmanager
def _folder(workspace: Path | None) -> Iterator[Path]:
    """Yield the workspace's folder; it is gone afterwards, but kept for another attempt where something failed."""
    if workspace is None:
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary) / "work"
        return
    yield workspace
    shutil.rmtree(workspace)


def _measure(
    request: CoverageRequest, model: LoadedModel, text: Ranking, data: CoverageData, progress: ProgressSink
) -> Coverage:
    passes = count_passes(data, request.moments, request.tuning)
    progress.stage(Stage.CALIBRATING, total=passes, unit="backward passes")
    done = iter(range(1, passes + 1))
    return measure_coverage(
        model.network,
        {name: model.parameters[name] for name in model.outline.linear_names},
        text,
        data,
        moments=request.moments,
        tuning=request.tuning,
        recomputed_blocks=model.blocks if model.device.type == "cuda" else (),
        after_pass=lambda: progress.advance(next(done)),
    )


def _read_rows(request: CoverageRequest, rows: TextSource, model: PlannedModel) -> CoverageData:
    if rows.path is None:
        raise DataError("the task's rows are no file", needed="a folder of tasks, or a file of rows", param="task.text")
    records = read_rows(rows.path)
    count = _row_count(request, records)
    drawn = max(count, min(len(records), _TRAINING_ROWS)) if request.steps else count
    spec = request.task.model_copy(update={"sequences": drawn})
    model_type = str(model.outline.architecture["model_type"])
    examples = Calibration.of_examples(calibration_examples(records, model.encoder, spec, model_type=model_type))
    half = count // 2
    return CoverageData(examples.part(slice(0, half)), examples.part(slice(half, count)), examples)


def _row_count(request: CoverageRequest, records: list[Record]) -> int:
    wanted = request.rows or min(_DEFAULT_ROWS, len(records))
    if len(records) < max(wanted, 4):
        raise DataError(
            f"the task has {len(records)} rows",
            needed=f"{max(wanted, 4)}: half of them select, half of them measure",
            next_step="give more rows" if len(records) < 4 else f"--rows {len(records)}",
            param="rows",
        )
    return wanted


def _about(
    request: CoverageRequest, source: ResolvedInput, rows: TextSource, text: Calibration, data: CoverageData
) -> dict[str, Any]:
    is_own = request.task.task == OWN_ROWS
    return {
        "model": source.model_id,
        "revision": source.revision,
        "text": source.calibration.name,
        "text_sequences": len(text),
        "text_tokens_per_sequence": text.tokens.shape[1],
        "text_digest": tokens_digest(text),
        "task": rows.name if is_own else request.task.task,
        "task_file": rows.name,
        "selecting_rows": len(data.selecting),
        "selecting_digest": tokens_digest(data.selecting),
        "measuring_rows": len(data.measuring),
        "measuring_digest": tokens_digest(data.measuring),
        "seed": request.task.seed,
        "fine_tuning": {
            "optimizer": request.optimizer,
            "lr": request.lr,
            "batch": min(request.batch, len(data.training)),
            "rows": len(data.training),
            "steps": request.steps,
        }
        if request.steps
        else None,
    }
