"""Prepares a model, stage by stage. This is the page to read first; each stage is a module beside it.

    resolving      what the request names, its fingerprint, a memory plan    identity · sources · hub · planning
    downloading    the checkpoint: safetensors and JSON only                 hub · load_model · tokenization
    calibrating    calibration tokens, then the Fisher sums, shard by shard  calibration · fisher · launchers
    selecting      the sensitivity mask: exactly k weights                   fisher_totals · select_sensitive
    quantizing     each block: dense part quantised, sensitive part kept     split_blocks · quantize · quantizers
    evaluating     perplexity in 16 bits, as the bundle, dense part alone    perplexity · bundle_weights
    publishing     report, documents, manifest; not signed, not tagged       report · publish

Every stage leaves a checkpoint in the workspace: the Fisher totals after each shard, each finished block, the loss
sums of the evaluation. Called again after a SIGKILL at any moment, with the same request and workspace, it goes on from
there and ends with the same digest (on the same kind of processor and number of threads: float sums depend on their
order; the memory plan, the launcher and the number of workers change nothing). The network is in memory only while
gradients or losses are computed; what the Fisher pass leaves is gone through block by block.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cloud_service.memory_budget import MemoryBudget
from cloud_service.pipeline.bundle_weights import write_dense_part, write_sensitive_part
from cloud_service.pipeline.calibration import Calibration, read_calibration, tokens_digest
from cloud_service.pipeline.checkpoint import Workspace, require_space
from cloud_service.pipeline.documents import read_documents
from cloud_service.pipeline.fisher_totals import FisherTotals
from cloud_service.pipeline.hub import first_line
from cloud_service.pipeline.identity import ResolvedInput, resolve
from cloud_service.pipeline.launchers.local import FisherLauncher, FisherPasses, FisherWork, LocalLauncher
from cloud_service.pipeline.load_model import LoadedModel, ModelOutline, evaluation_dtype, load_model, read_outline
from cloud_service.pipeline.perplexity import LossSum, evaluation_windows, sum_losses
from cloud_service.pipeline.pinned_commit import release_pin
from cloud_service.pipeline.planning.machine_probe import accelerator_indices
from cloud_service.pipeline.planning.plan_table import plan_line
from cloud_service.pipeline.planning.preparation_plan import PreparationPlan
from cloud_service.pipeline.planning.request_plan import plan_request
from cloud_service.pipeline.publish import TensorBlob, add_documents, license_of, model_card
from cloud_service.pipeline.published_inputs import PublishedInputs
from cloud_service.pipeline.report import FisherFigures, fisher_figures, report_document
from cloud_service.pipeline.report_page import report_page
from cloud_service.pipeline.run_record import RunRecord
from cloud_service.pipeline.run_recorder import RunRecorder
from cloud_service.pipeline.select_sensitive import Masks, overlap, select_largest, select_random
from cloud_service.pipeline.split_blocks import split_blocks
from cloud_service.pipeline.stored_tensors import StoredTensors
from cloud_service.pipeline.tokenization import TextEncoder, load_encoder
from cloud_service.progress import ProgressSink
from cloud_service.sources import SourcePolicy
from shared.api import PrepareRequest, Stage
from shared.bundle.layout import ImageLayout
from shared.bundle.manifest import (
    MAX_MANIFEST_BYTES,
    BundleConfig,
    Descriptor,
    MaskProvenance,
    MemoryEstimates,
    ParameterCounts,
    Quantizer,
    SourceModel,
    parse_manifest,
)
from shared.bundle.write import add_manifest
from shared.errors import ResourceError, UnsupportedModel

_PRODUCER = "zo-device 0.1.0"
_VARIANTS = ("16bit", "bundle", "dense_only")


@dataclass(frozen=True, slots=True)
class PreparedBundle:
    """A bundle whose blobs and manifest are stored, but which no name points to yet.

    Attributes:
        name: Name to publish under.
        tag: Tag to publish under.
        manifest: The manifest: sign its digest, then tag both.
        size_bytes: Bytes of all distinct blobs.
        report: Content of report.json.
        report_html: The report page, in the workspace.
        run: How the preparation went: plan, times, memory.
        fingerprint: Digest of the input; equal inputs give equal bundles.
    """

    name: str
    tag: str
    manifest: Descriptor
    size_bytes: int
    report: dict[str, Any]
    report_html: Path
    run: RunRecord
    fingerprint: str


@dataclass(frozen=True, slots=True)
class _Means:
    """What the work is done with; none of it changes the bundle."""

    launcher: FisherLauncher
    budget: MemoryBudget
    device: str | None


@dataclass(frozen=True, slots=True)
class _Job:
    """What every stage needs."""

    request: PrepareRequest
    source: ResolvedInput
    policy: SourcePolicy
    workspace: Workspace
    layout: ImageLayout
    progress: ProgressSink
    launcher: FisherLauncher
    plan: PreparationPlan
    recorder: RunRecorder
    device: str
    outline: ModelOutline
    encoder: TextEncoder


def prepare(
    request: PrepareRequest,
    *,
    workspace: Path,
    layout: ImageLayout,
    progress: ProgressSink,
    sources: SourcePolicy,
    launcher: FisherLauncher | None = None,
    budget: MemoryBudget | None = None,
    device: str | None = None,
) -> PreparedBundle:
    """Make the bundle that ``request`` asks for and store it in ``layout``, unsigned and untagged.

    Args:
        request: What to prepare.
        workspace: A folder of this job alone, for checkpoints.
        layout: Where the blobs go.
        progress: Told about every step; may raise ``Interrupted``.
        sources: What may be read.
        launcher: Where the Fisher shards are computed; None means this process.
        budget: Memory that may be used; None means all. It changes how long the work takes, and nothing else.
        device: Torch device; None means all CUDA devices where there are any, else the CPU.

    Raises:
        ZoError: The model, a text, the hub or the disk; the subclass says who can act.
    """
    try:
        means = _Means(launcher or LocalLauncher(), budget or MemoryBudget(), device)
        return _prepare(_begin(request, workspace, layout, progress, sources, means))
    except UnsupportedModel:
        release_pin(workspace)
        raise
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise ResourceError(
            f"out of memory: {first_line(error)}",
            needed="the memory that zo-cloud plan predicts",
            next_step="free memory, take a larger machine or a smaller model; the same command goes on from here",
        ) from error


def _begin(
    request: PrepareRequest,
    workspace: Path,
    layout: ImageLayout,
    progress: ProgressSink,
    policy: SourcePolicy,
    means: _Means,
) -> _Job:
    source = resolve(request, policy, progress, workspace=workspace)
    checkpoints = Workspace(workspace)
    if is_resumed := checkpoints.claim(source.fingerprint):
        progress.note("resuming from the checkpoints of an earlier attempt")
    outline = read_outline(source.folder)
    encoder = load_encoder(source.folder, outline.architecture, outline.context_length)
    plan = plan_request(request, source.folder, means.budget, device=means.device, workspace=workspace)
    progress.note(f"plan: {plan_line(plan)}")
    accelerators = accelerator_indices(means.device)
    return _Job(
        request=request,
        source=source,
        policy=policy,
        workspace=checkpoints,
        layout=layout,
        progress=progress,
        launcher=means.launcher,
        plan=plan,
        recorder=RunRecorder(plan, accelerators, is_resumed=is_resumed),
        device=f"cuda:{accelerators[0]}" if accelerators else "cpu",
        outline=outline,
        encoder=encoder,
    )


def _prepare(job: _Job) -> PreparedBundle:
    with job.recorder.stage(Stage.CALIBRATING):
        calibration = _calibrate(job)
        totals = _estimate_fisher(job, calibration)
    with job.recorder.stage(Stage.SELECTING):
        masks, figures = _select(job, totals)
    with job.recorder.stage(Stage.QUANTIZING):
        blobs = _split(job, calibration, masks, totals.diagonal())
    with job.recorder.stage(Stage.EVALUATING):
        perplexity = _evaluate(job, blobs)
    return _publish(job, calibration, figures, blobs, perplexity)


def bundle_name(model_id: str) -> str:
    """Return the name that a model's bundle is published under by default."""
    parts = (re.sub(r"[^a-z0-9]+", "-", part).strip("-") for part in model_id.lower().split("/"))
    return "/".join(part for part in parts if part) or "model"


def _calibrate(job: _Job) -> Calibration:
    job.progress.stage(Stage.CALIBRATING, total=job.request.calibration.sequences, unit="sequences")
    saved = job.workspace.read_tensors("calibration")
    if saved is not None:
        return Calibration.from_tensors(saved)
    _evaluation_documents(job)  # a text that streams is asked for all of its documents now, not hours later
    is_same_text = job.source.calibration == job.source.evaluation
    calibration = read_calibration(
        job.source.calibration,
        job.encoder,
        job.request.calibration,
        policy=job.policy,
        model_type=str(job.outline.architecture["model_type"]),
        held_out=job.request.evaluation.documents if is_same_text else 0,
    )
    job.workspace.write_tensors("calibration", calibration.to_tensors(), {})
    return calibration


def _estimate_fisher(job: _Job, calibration: Calibration) -> FisherTotals:
    blocks = job.outline.block_linears
    plan = job.plan
    totals = FisherTotals(job.workspace, blocks, len(calibration), keeps_in_memory=plan.totals_in_memory)
    passes = FisherPasses(plan.passes, plan.accumulators == "host", plan.recomputes_activations)
    job.progress.stage(Stage.CALIBRATING, total=len(passes.groups) * len(calibration), unit="sequences")
    if totals.is_complete:
        job.progress.advance(len(passes.groups) * len(calibration))
        return totals
    weights = sum(int(np.prod(job.outline.shapes[name])) for name in job.outline.linear_names)
    require_space(job.workspace.folder, 2 * 4 * weights, "the Fisher sums of both halves")
    work = FisherWork(job.outline, job.source.folder, calibration, passes, job.device, plan.device_map)
    job.launcher.estimate(work, totals, after_sequence=job.progress.advance)
    return totals


def _select(job: _Job, totals: FisherTotals) -> tuple[Masks, FisherFigures]:
    request = job.request
    job.progress.stage(Stage.SELECTING)
    masks = _masks(job, totals)
    if (saved := job.workspace.read_json("figures")) is not None:
        return masks, FisherFigures(**saved)
    agreement = None
    if request.mask_source == "fisher":
        agreement = overlap(*(select_largest(half, request.sparsity, request.scope) for half in totals.halves()))
    figures = fisher_figures(totals.diagonal(), masks, agreement)
    job.workspace.write_json("figures", dataclasses.asdict(figures))
    return masks, figures


def _masks(job: _Job, totals: FisherTotals) -> Masks:
    request, outline = job.request, job.outline
    match request.mask_source:
        case "fisher":
            return select_largest(totals.diagonal(), request.sparsity, request.scope)
        case "magnitude":
            magnitudes = StoredTensors(outline.linear_names, lambda name: outline.weights.read(name).float().abs_())
            return select_largest(magnitudes, request.sparsity, request.scope)
        case "random":
            sizes = {name: int(np.prod(outline.shapes[name])) for name in outline.linear_names}
            return select_random(sizes, request.sparsity, request.scope, request.calibration.seed)


def _split(job: _Job, calibration: Calibration, masks: Masks, fisher: StoredTensors) -> list[TensorBlob]:
    job.progress.stage(Stage.QUANTIZING, total=job.outline.block_count, unit="blocks")
    require_space(job.layout.root, sum(int(np.prod(shape)) for shape in job.outline.shapes.values()), "the bundle")
    inputs = None
    if job.request.quantizer.compensation == "gptq":
        model = load_model(job.outline, device=job.device, device_map=job.plan.device_map)
        inputs = PublishedInputs(model, calibration)
    return split_blocks(
        job.outline,
        masks,
        fisher,
        job.request.quantizer,
        layout=job.layout,
        workspace=job.workspace,
        device=job.device,
        after_block=job.progress.advance,
        inputs=inputs,
    )


def _evaluate(job: _Job, blobs: list[TensorBlob]) -> dict[str, Any] | None:
    count = job.request.evaluation.documents
    job.progress.stage(Stage.EVALUATING)
    if count == 0:
        return None
    documents = _evaluation_documents(job)
    windows = evaluation_windows(documents, job.encoder)
    job.progress.stage(Stage.EVALUATING, total=len(_VARIANTS) * len(windows), unit="windows")
    dtype = evaluation_dtype(job.outline, job.device)
    model = load_model(job.outline, device=job.device, device_map=job.plan.device_map, dtype=dtype)
    sums = {}
    for position, variant in enumerate(_VARIANTS):
        if variant != "16bit":
            write_dense_part(model, job.layout, blobs)
        if variant == "bundle":
            write_sensitive_part(model, job.layout, blobs)
        sums[variant] = _evaluate_variant(job, model, variant, windows, position * len(windows))
    text = {"text": job.source.evaluation.name, "documents": len(documents), "tokens": sums["16bit"].tokens}
    return text | {variant: total.perplexity for variant, total in sums.items()}


def _evaluation_documents(job: _Job) -> list[str]:
    saved = job.workspace.read_json("evaluation-documents")
    if saved is not None:
        return [str(document) for document in saved]
    count = job.request.evaluation.documents
    documents = list(itertools.islice(read_documents(job.source.evaluation, job.policy), count)) if count else []
    job.workspace.write_json("evaluation-documents", documents)
    return documents


def _evaluate_variant(
    job: _Job, model: LoadedModel, variant: str, windows: list[list[int]], done_before: int
) -> LossSum:
    saved = job.workspace.read_json(f"loss-{variant}")

    def after_batch(total: LossSum) -> None:
        job.workspace.write_json(f"loss-{variant}", dataclasses.asdict(total))
        job.progress.advance(done_before + total.windows)

    return sum_losses(model.network, windows, LossSum(**saved) if saved else LossSum(), after_batch=after_batch)


def _publish(
    job: _Job,
    calibration: Calibration,
    figures: FisherFigures,
    blobs: list[TensorBlob],
    perplexity: dict[str, Any] | None,
) -> PreparedBundle:
    job.progress.stage(Stage.PUBLISHING)
    source = SourceModel(id=job.source.model_id, revision=job.source.revision, license=license_of(job.source.folder))
    config = _bundle_config(job, source, _mask_provenance(job, calibration, figures, blobs), blobs, perplexity)
    report = report_document(source, config.mask, config.quantizer, figures, blobs, perplexity, producer=_PRODUCER)
    documents = add_documents(
        job.layout,
        job.source.folder,
        tokenizer_json=job.encoder.to_json(),
        report=report,
        model_card=model_card(source, report),
    )
    layers = [blob.layer for blob in blobs] + documents
    manifest = add_manifest(job.layout, config, layers)
    size = parse_manifest(job.layout.read_blob(manifest.digest, max_bytes=MAX_MANIFEST_BYTES)).size_bytes
    run = job.recorder.record(job.launcher, bundle_digest=manifest.digest, bundle_bytes=size)
    return PreparedBundle(
        name=job.request.name or bundle_name(job.source.model_id),
        tag=job.request.tag,
        manifest=manifest,
        size_bytes=size,
        report=report,
        report_html=job.workspace.write_bytes("report.html", report_page(report, run)),
        run=run,
        fingerprint=job.source.fingerprint,
    )


def _mask_provenance(
    job: _Job, calibration: Calibration, figures: FisherFigures, blobs: list[TensorBlob]
) -> MaskProvenance:
    return MaskProvenance(
        source=job.request.mask_source,
        scope=job.request.scope,
        sparsity=job.request.sparsity,
        sensitive_count=sum(entry.sensitive_count for blob in blobs for entry in blob.quantized),
        calibration_text=job.source.calibration.name,
        calibration_sequences=calibration.tokens.shape[0],
        calibration_tokens_per_sequence=calibration.tokens.shape[1],
        calibration_seed=job.request.calibration.seed,
        calibration_digest=tokens_digest(calibration),
        split_half_overlap=figures.split_half_overlap,
        gradient_mass=figures.gradient_mass,
    )


def _bundle_config(
    job: _Job, source: SourceModel, mask: MaskProvenance, blobs: list[TensorBlob], perplexity: dict[str, Any] | None
) -> BundleConfig:
    tensors = [entry for blob in blobs for entry in blob.quantized]
    dense = [entry for blob in blobs for entry in blob.dense]
    quantized_count = sum(entry.element_count for entry in tensors)
    dense_count = sum(int(np.prod(entry.shape)) for entry in dense)
    spec = job.request.quantizer
    return BundleConfig(
        producer=_PRODUCER,
        source=source,
        architecture=job.outline.architecture,
        tokenizer=job.encoder.settings,
        mask=mask,
        quantizer=Quantizer(
            method=spec.method,
            bits=spec.bits,
            group_size=None if spec.method == "lut" else spec.group_size,
            compensation=None if spec.compensation == "none" else spec.compensation,
        ),
        tensors=tensors,
        dense_parameters=dense,
        parameter_counts=ParameterCounts(
            total=quantized_count + dense_count,
            quantized=quantized_count,
            sensitive=mask.sensitive_count,
            dense=dense_count,
        ),
        memory=MemoryEstimates(
            weights_bytes=sum(blob.layer.size for blob in blobs),
            workspace_bytes=2 * max(entry.element_count for entry in tensors),
        ),
        quality={f"perplexity_{variant}": perplexity[variant] for variant in _VARIANTS} if perplexity else {},
    )
