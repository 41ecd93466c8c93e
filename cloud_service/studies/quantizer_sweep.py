"""Every quantiser at every width on one model: one Fisher pass, then quantise and evaluate once per combination.

    DIR/.workspace/         checkpoints of the Fisher pass, and the combination at work; gone at the end
    DIR/.combinations/      one small file per finished combination; kept, so a longer list goes on from here

Each combination makes the blobs that a preparation would publish and evaluates what it reads back from them, first the
dense part alone, then with the sensitive values. Memory plan, launcher and dtypes are a preparation's. A SIGKILL costs
the shard or the combination at work. Costs, besides the Fisher pass, one quantisation, two evaluations and at most two
loads of the network per combination, the memory of a preparation, and the disk of one bundle. Knows nothing about
tables and pages.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from cloud_service.pipeline.calibration.sequences import Calibration, tokens_digest
from cloud_service.pipeline.evaluation.perplexity import evaluation_windows
from cloud_service.pipeline.evaluation.variants import sum_losses_of_variant
from cloud_service.pipeline.fisher.select_sensitive import Masks, overlap, select_largest
from cloud_service.pipeline.fisher.stored_tensors import StoredTensors
from cloud_service.pipeline.named_input import NamedInput
from cloud_service.pipeline.opening.open_model import OpenedModel, open_model
from cloud_service.pipeline.opening.planned_model import Means, PlannedModel
from cloud_service.pipeline.planning.peak_memory import HIDDEN_BYTES_AT_ONCE
from cloud_service.pipeline.quantizers.bundle_weights import PublishedWeights
from cloud_service.pipeline.quantizers.split_blocks import split_blocks
from cloud_service.pipeline.quantizers.tensor_blobs import TensorBlob
from cloud_service.pipeline.report.document import bytes_by_part
from cloud_service.pipeline.workspace import Workspace
from cloud_service.progress import ProgressSink
from cloud_service.sources import SourcePolicy
from shared.api import CalibrationSpec, EvaluationSpec, GgufFileName, Message, QuantizerSpec, Stage
from shared.bundle.layout import ImageLayout
from shared.errors import Conflict
from shared.file_lock import exclusive

Method = Literal["lut", "shared", "uniform", "rtn"]
Bits = Literal[2, 3, 4, 8]
Compensation = Literal["none", "gptq", "refit"]

_WORKSPACE = ".workspace"


class SweepRequest(Message):
    """What to sweep.

    Attributes:
        model: Hub id, a folder or a GGUF file.
        revision: Hub revision; None means the default branch.
        gguf_file: Name of a GGUF file in the folder or repository.
        methods: Quantisers.
        bits: Widths.
        compensations: With or without error compensation, or both.
        group_size: Columns per group for ``uniform`` and ``rtn``.
        sparsity: Share of sensitive weights.
        scope: Scope of the mask.
        calibration: Text of the Fisher pass.
        evaluation: Text of the perplexities; at least one document.
    """

    model: Annotated[str, Field(min_length=1, max_length=4096)]
    revision: str | None = None
    gguf_file: GgufFileName | None = None
    methods: Annotated[tuple[Method, ...], Field(min_length=1)] = ("lut", "uniform", "rtn")
    bits: Annotated[tuple[Bits, ...], Field(min_length=1)] = (2, 3, 4, 8)
    compensations: Annotated[tuple[Compensation, ...], Field(min_length=1)] = ("gptq",)
    group_size: Annotated[int, Field(ge=8, le=4096)] = 64
    sparsity: Annotated[float, Field(gt=0, le=0.5)] = 0.001
    scope: Literal["per_tensor", "global"] = "per_tensor"
    calibration: CalibrationSpec = CalibrationSpec()
    evaluation: EvaluationSpec = EvaluationSpec()

    @field_validator("methods", "bits", "compensations")
    @classmethod
    def _each_once(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(dict.fromkeys(values))

    @field_validator("evaluation")
    @classmethod
    def _something_is_evaluated(cls, evaluation: EvaluationSpec) -> EvaluationSpec:
        if evaluation.documents == 0:
            raise ValueError("a sweep compares perplexities: evaluation.documents must be at least 1")
        return evaluation

    @property
    def quantizers(self) -> tuple[QuantizerSpec, ...]:
        """Every combination, in order."""
        return tuple(
            QuantizerSpec(method=method, bits=bits, group_size=self.group_size, compensation=compensation)
            for method, compensation, bits in itertools.product(self.methods, self.compensations, self.bits)
        )

    @property
    def largest_quantizer(self) -> QuantizerSpec:
        """The combination that needs the most memory: one with compensation, where there is one."""
        return next((spec for spec in self.quantizers if spec.compensation != "none"), self.quantizers[0])

    @property
    def named_input(self) -> NamedInput:
        """What the sweep works on: the same input, whatever quantisers are swept."""
        return NamedInput(
            model=self.model,
            revision=self.revision,
            calibration=self.calibration,
            evaluation=self.evaluation,
            settings={"study": "quantizers", "sparsity": self.sparsity, "scope": self.scope},
            sparsity=self.sparsity,
            quantizer=self.largest_quantizer,
            gguf_file=self.gguf_file,
        )


@dataclass(frozen=True, slots=True)
class Combination:
    """What one quantiser at one width came to.

    Attributes:
        method: Quantiser.
        bits: Width of a code.
        group_size: Columns per group; None for ``lut``, which has none.
        compensation: ``none`` or ``gptq``.
        bits_dense: Bits stored per quantised weight: codes, codebooks and scales.
        bits_stored: The same with the sensitive values, their indices and ranks.
        perplexity: With the sensitive values in place.
        perplexity_dense_only: Without them.
        weighted_error: Mean over the quantised weights of their tensors' Σ F (W − Q)² / Σ F W².
        seconds: Time to quantise the model, with reading and writing.
    """

    method: str
    bits: int
    group_size: int | None
    compensation: str
    bits_dense: float
    bits_stored: float
    perplexity: float
    perplexity_dense_only: float
    weighted_error: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Sweep:
    """The figures of a whole sweep.

    Attributes:
        about: Model, text and settings, JSON-ready; no path.
        perplexity_16bit: Of the 16-bit weights.
        combinations: In the order of the request.
    """

    about: dict[str, Any]
    perplexity_16bit: float
    combinations: tuple[Combination, ...]


@dataclass(frozen=True, slots=True)
class _Job:
    """What every stage needs."""

    request: SweepRequest
    opened: OpenedModel
    progress: ProgressSink
    finished: Workspace


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What all combinations start from."""

    model: PlannedModel
    calibration: Calibration
    windows: list[list[int]]
    masks: Masks
    fisher: StoredTensors


def run_sweep(
    request: SweepRequest,
    *,
    folder: Path,
    policy: SourcePolicy,
    progress: ProgressSink,
    means: Means | None = None,
) -> Sweep:
    """Measure every combination that ``request`` asks for and that is not already finished in ``folder``.

    Args:
        request: What to sweep.
        folder: Where checkpoints and finished combinations lie; those of another input are dropped.
        policy: What may be read.
        progress: Told about every step; may raise ``Interrupted``.
        means: What to do it with; None means this process and all memory of all CUDA devices, else of the CPU.

    Raises:
        Conflict: Another sweep works in ``folder``.
        ZoError: The model, a text, the hub, the disk or memory; the subclass says who can act.
    """
    busy = Conflict(f"another sweep works in {folder}", next_step="wait for it, or give another --output")
    opening = open_model(request.named_input, workspace=folder / _WORKSPACE, policy=policy, progress=progress)
    with exclusive(folder / ".sweep.lock", busy=busy), opening as opened:
        job = _Job(request, opened, progress, Workspace(folder / ".combinations"))
        if job.finished.claim(opened.source.fingerprint):
            progress.note("going on from the combinations that are finished")
        missing = [spec for spec in request.quantizers if job.finished.read_json(_key(spec)) is None]
        if missing or job.finished.read_json("about") is None:
            _measure(job, missing, means or Means())
        shutil.rmtree(opened.workspace.folder)
    return _collect(job)


def _measure(job: _Job, missing: list[QuantizerSpec], means: Means) -> None:
    model = job.opened.plan(means)
    calibration, documents = job.opened.read_texts(model)
    windows = evaluation_windows(documents, model.encoder)
    totals = job.opened.estimate_fisher(model, calibration)
    job.progress.stage(Stage.SELECTING)
    select = partial(
        select_largest,
        sparsity=job.request.sparsity,
        scope=job.request.scope,
        elements=sum(model.outline.linear_sizes.values()),
    )
    masks = select(totals.diagonal())
    prepared = _Prepared(model, calibration, windows, masks, totals.diagonal())
    if job.finished.read_json("about") is None:
        halves = map(select, totals.halves())
        about = _about(job, prepared, len(documents), overlap(*halves))
        job.progress.stage(Stage.EVALUATING)
        perplexity = sum_losses_of_variant(
            model.load_for_evaluation(), windows, hidden_bytes=HIDDEN_BYTES_AT_ONCE
        ).perplexity
        job.finished.write_json("about", {"about": about, "perplexity_16bit": perplexity})
    for number, spec in enumerate(missing, 1):
        job.progress.note(f"combination {number} of {len(missing)}: {_key(spec)}")
        job.finished.write_json(_key(spec), dataclasses.asdict(_measure_one(job, spec, prepared)))


def _measure_one(job: _Job, spec: QuantizerSpec, prepared: _Prepared) -> Combination:
    with _scratch(job.opened.workspace.folder / "combination") as scratch:
        layout = ImageLayout.create(scratch / "bundle")
        started = time.monotonic()
        blobs = _split(job, spec, prepared, layout, Workspace(scratch))
        seconds = time.monotonic() - started
        job.progress.stage(Stage.EVALUATING)
        model = prepared.model.load_for_evaluation()
        dense_only, bundle = (
            sum_losses_of_variant(
                model,
                prepared.windows,
                rewritten=PublishedWeights(model, layout, blobs, has_sensitive_part),
                hidden_bytes=HIDDEN_BYTES_AT_ONCE,
            ).perplexity
            for has_sensitive_part in (False, True)
        )
        return _combination(spec, blobs, bundle, dense_only, seconds)


def _split(
    job: _Job, spec: QuantizerSpec, prepared: _Prepared, layout: ImageLayout, workspace: Workspace
) -> list[TensorBlob]:
    model = prepared.model
    job.progress.stage(Stage.QUANTIZING, total=model.outline.block_count, unit="blocks")
    return split_blocks(
        model.outline,
        prepared.masks,
        prepared.fisher,
        spec,
        16,  # quantisers of the blocks are compared: nothing else may differ
        layout=layout,
        workspace=workspace,
        device=model.device,
        after_block=job.progress.advance,
        inputs=None if spec.compensation == "none" else model.published_inputs(prepared.calibration),
    )


def _combination(
    spec: QuantizerSpec, blobs: list[TensorBlob], perplexity: float, dense_only: float, seconds: float
) -> Combination:
    entries = [entry for blob in blobs for entry in blob.quantized]
    weights = sum(entry.element_count for entry in entries)
    sizes = bytes_by_part(entries, ())
    dense_bits = 8 * (sizes["codes"] + sizes["codebooks"] + sizes["scales"]) / weights
    return Combination(
        spec.method,
        spec.bits,
        None if spec.method == "lut" else spec.group_size,
        spec.compensation,
        dense_bits,
        8 * sum(sizes.values()) / weights,
        perplexity,
        dense_only,
        sum(entry.weighted_relative_error * entry.element_count for entry in entries) / weights,
        seconds,
    )


def _about(job: _Job, prepared: _Prepared, documents: int, split_half_overlap: float) -> dict[str, Any]:
    return {
        "model": job.opened.source.model_id,
        "revision": job.opened.source.revision,
        "sparsity": job.request.sparsity,
        "scope": job.request.scope,
        "split_half_overlap": split_half_overlap,
        "calibration_text": job.opened.source.calibration.name,
        "calibration_sequences": len(prepared.calibration),
        "calibration_tokens_per_sequence": prepared.calibration.tokens.shape[1],
        "calibration_seed": job.request.calibration.seed,
        "calibration_digest": tokens_digest(prepared.calibration),
        "evaluation_text": job.opened.source.evaluation.name,
        "evaluation_documents": documents,
        "evaluation_dtype": prepared.model.evaluation_dtype_name,
    }


def _collect(job: _Job) -> Sweep:
    whole = job.finished.read_json("about")
    combinations = (Combination(**job.finished.read_json(_key(spec))) for spec in job.request.quantizers)
    return Sweep(whole["about"], whole["perplexity_16bit"], tuple(combinations))


def _key(spec: QuantizerSpec) -> str:
    group = "" if spec.method == "lut" else f"-g{spec.group_size}"
    compensation = "" if spec.compensation == "none" else f"-{spec.compensation}"
    return f"{spec.method}-{spec.bits}{group}{compensation}"


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that is gone afterwards; what a killed attempt left there is dropped."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    yield folder
    shutil.rmtree(folder)
