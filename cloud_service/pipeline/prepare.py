"""Prepares a model, stage by stage. This is the page to read first; each stage is a folder beside it.

    resolving      what the request names, its fingerprint, a memory plan    opening · planning
    downloading    the checkpoint: safetensors and JSON, or a GGUF file      model
    calibrating    calibration tokens, then the Fisher sums, shard by shard  calibration · fisher · fisher/launchers
    selecting      the sensitivity mask: exactly k weights                   fisher/select_sensitive
    quantizing     each block: dense part quantised, sensitive part kept     quantizers
    evaluating     perplexity as published, as the bundle, dense part alone  evaluation
    publishing     opened as devices will, report, documents, manifest       report · publish

Nothing is signed or tagged here. Every stage leaves a checkpoint in the workspace: the Fisher totals after each shard,
each finished block, the loss sums of the evaluation. Called again after a SIGKILL at any moment, with the same request
and workspace, it goes on from there and ends with the same digest (on the same kind of processor and number of threads:
float sums depend on their order; the memory plan, the launcher and the number of workers change nothing). The network
is in memory only while gradients, inputs of the layers (for error compensation) or losses are computed; what the Fisher
pass leaves is gone through block by block.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cloud_service.bundle_names import bundle_name
from cloud_service.pipeline.calibration.sequences import Calibration, tokens_digest
from cloud_service.pipeline.evaluation.perplexity import LossSum, evaluation_windows
from cloud_service.pipeline.evaluation.variants import sum_losses_of_variant
from cloud_service.pipeline.fisher.select_sensitive import Masks, overlap, select_largest, select_random
from cloud_service.pipeline.fisher.stored_tensors import StoredTensors
from cloud_service.pipeline.fisher.totals import FisherTotals
from cloud_service.pipeline.model.load_model import LoadedModel
from cloud_service.pipeline.named_input import NamedInput
from cloud_service.pipeline.opening.identity import ResolvedInput
from cloud_service.pipeline.opening.open_model import OpenedModel, open_model
from cloud_service.pipeline.opening.planned_model import Means, PlannedModel
from cloud_service.pipeline.planning.peak_memory import HIDDEN_BYTES_AT_ONCE
from cloud_service.pipeline.publish.device_rules import check_devices_open
from cloud_service.pipeline.publish.documents import add_documents, license_of, model_card
from cloud_service.pipeline.quantizers.bundle_weights import PublishedWeights
from cloud_service.pipeline.quantizers.split_blocks import missing_bundle_bytes, split_blocks
from cloud_service.pipeline.quantizers.tensor_blobs import TensorBlob
from cloud_service.pipeline.report.document import FisherFigures, fisher_figures, report_document
from cloud_service.pipeline.report.page import report_page
from cloud_service.pipeline.report.run_record import RunRecord
from cloud_service.pipeline.report.run_recorder import RunRecorder
from cloud_service.pipeline.workspace import Workspace, require_space
from cloud_service.progress import ProgressSink
from cloud_service.sources import SourcePolicy
from shared.api import PrepareRequest, Stage
from shared.bundle.config import (
    BundleConfig,
    MaskProvenance,
    MemoryEstimates,
    ParameterCounts,
    Quantizer,
    SourceModel,
    needed_versions,
)
from shared.bundle.layout import ImageLayout
from shared.bundle.manifest import MAX_MANIFEST_BYTES, TRUNK_TITLE, Descriptor, parse_manifest
from shared.bundle.write import add_manifest

_PRODUCER = "zo-device 0.1.0"
_VARIANTS = {"16bit": "model as published", "bundle": "bundle", "dense_only": "dense part alone"}


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
class _Job:
    """What every stage needs."""

    request: PrepareRequest
    source: ResolvedInput
    workspace: Workspace
    layout: ImageLayout
    progress: ProgressSink
    model: PlannedModel
    recorder: RunRecorder


def prepare(
    request: PrepareRequest,
    *,
    workspace: Path,
    layout: ImageLayout,
    progress: ProgressSink,
    sources: SourcePolicy,
    means: Means | None = None,
) -> PreparedBundle:
    """Make the bundle that ``request`` asks for and store it in ``layout``, unsigned and untagged.

    Args:
        request: What to prepare.
        workspace: A folder of this job alone, for checkpoints.
        layout: Where the blobs go.
        progress: Told about every step; may raise ``Interrupted``.
        sources: What may be read.
        means: What to do it with; None means this process and all memory of all CUDA devices, else of the CPU. The
            budget changes how long the work takes, and nothing else.

    Raises:
        ZoError: The model, a text, the hub or the disk; the subclass says who can act.
    """
    named = NamedInput.of_preparation(request)
    with open_model(named, workspace=workspace, policy=sources, progress=progress) as opened:
        if opened.is_resumed:
            progress.note("resuming from the checkpoints of an earlier attempt")
        ImageLayout.create(layout.root)  # it may lie in the workspace, which is empty where there is nothing to resume
        return _prepare(opened, request, layout, means or Means())


def _prepare(opened: OpenedModel, request: PrepareRequest, layout: ImageLayout, means: Means) -> PreparedBundle:
    model = opened.plan(means)
    recorder = RunRecorder(model.plan, model.accelerators, is_resumed=opened.is_resumed)
    job = _Job(request, opened.source, opened.workspace, layout, opened.progress, model, recorder)
    with job.recorder.stage(Stage.CALIBRATING):
        calibration, documents = opened.read_texts(model)
        totals = opened.estimate_fisher(model, calibration)
    with job.recorder.stage(Stage.SELECTING):
        masks, figures = _select(job, totals)
    with job.recorder.stage(Stage.QUANTIZING):
        blobs = _split(job, calibration, masks, totals.diagonal())
    with job.recorder.stage(Stage.EVALUATING):
        perplexity = _evaluate(job, blobs, documents)
    return _publish(job, calibration, figures, blobs, perplexity)


def _select(job: _Job, totals: FisherTotals) -> tuple[Masks, FisherFigures]:
    request = job.request
    job.progress.stage(Stage.SELECTING)
    masks = _masks(job, totals)
    if (saved := job.workspace.read_json("figures")) is not None:
        return masks, FisherFigures(**saved)
    agreement = None
    if request.mask_source == "fisher":
        agreement = overlap(*(_largest(job, half) for half in totals.halves()))
    figures = fisher_figures(totals.diagonal(), masks, agreement)
    job.workspace.write_json("figures", dataclasses.asdict(figures))
    return masks, figures


def _masks(job: _Job, totals: FisherTotals) -> Masks:
    request, outline = job.request, job.model.outline
    match request.mask_source:
        case "fisher":
            return _largest(job, totals.diagonal())
        case "magnitude":
            magnitudes = StoredTensors(outline.linear_names, lambda name: outline.weights.read(name).float().abs_())
            return _largest(job, magnitudes)
        case "random":
            return select_random(outline.linear_sizes, request.sparsity, request.scope, request.calibration.seed)


def _largest(job: _Job, measure: StoredTensors) -> Masks:
    elements = sum(job.model.outline.linear_sizes.values())
    return select_largest(measure, job.request.sparsity, job.request.scope, elements=elements)


def _split(job: _Job, calibration: Calibration, masks: Masks, fisher: StoredTensors) -> list[TensorBlob]:
    outline = job.model.outline
    job.progress.stage(Stage.QUANTIZING, total=outline.block_count, unit="blocks")
    missing = missing_bundle_bytes(outline, job.request.embedding_bits, job.layout, job.workspace)
    require_space(job.layout.root, missing, "the bundle")
    compensates = job.request.quantizer.compensation != "none"
    return split_blocks(
        outline,
        masks,
        fisher,
        job.request.quantizer,
        job.request.embedding_bits,
        layout=job.layout,
        workspace=job.workspace,
        device=job.model.device,
        after_block=job.progress.advance,
        inputs=job.model.published_inputs(calibration) if compensates else None,
        source_codes=job.model.source_codes,
    )


def _evaluate(job: _Job, blobs: list[TensorBlob], documents: list[str]) -> dict[str, Any] | None:
    job.progress.stage(Stage.EVALUATING)
    if not job.request.evaluation.documents:
        return None
    windows = evaluation_windows(documents, job.model.encoder)
    job.progress.stage(Stage.EVALUATING, total=len(_VARIANTS) * len(windows), unit="windows")
    model = job.model.load_for_evaluation()
    sums = {}
    for position, variant in enumerate(_VARIANTS):
        sums[variant] = _evaluate_variant(job, model, blobs, variant, windows, position * len(windows))
    about = {
        "text": job.source.evaluation.name,
        "documents": len(documents),
        "tokens": sums["16bit"].tokens,
        "dtype": job.model.evaluation_dtype_name,
    }
    return about | {variant: total.perplexity for variant, total in sums.items()}


def _evaluate_variant(
    job: _Job, model: LoadedModel, blobs: list[TensorBlob], variant: str, windows: list[list[int]], done_before: int
) -> LossSum:
    saved = job.workspace.read_json(f"loss-{variant}")

    def after_batch(total: LossSum) -> None:
        job.workspace.write_json(f"loss-{variant}", dataclasses.asdict(total))
        job.progress.advance(done_before + total.windows)

    published = PublishedWeights(model, job.layout, blobs, has_sensitive_part=variant == "bundle")
    return sum_losses_of_variant(
        model,
        windows,
        LossSum(**saved) if saved else LossSum(),
        rewritten=published if variant != "16bit" else None,
        after_batch=after_batch,
        subject=_VARIANTS[variant],
        hidden_bytes=HIDDEN_BYTES_AT_ONCE,
    )


def _publish(
    job: _Job,
    calibration: Calibration,
    figures: FisherFigures,
    blobs: list[TensorBlob],
    perplexity: dict[str, Any] | None,
) -> PreparedBundle:
    job.progress.stage(Stage.PUBLISHING)
    source = SourceModel(
        id=job.source.model_id,
        revision=job.source.revision,
        license=license_of(job.model.folder),
        dequantized_from=job.model.dequantized_from,
    )
    config = _bundle_config(job, source, _mask_provenance(job, calibration, figures, blobs), blobs, perplexity)
    tokenizer_json = job.model.encoder.to_json()
    check_devices_open(config, tokenizer_json)
    report = report_document(
        source,
        config.mask,
        config.quantizer,
        figures,
        blobs,
        perplexity,
        format_version=config.format_version,
        producer=_PRODUCER,
    )
    if config.is_untested_family:
        report["untested_family"] = config.architecture["model_type"]
    documents = add_documents(
        job.layout,
        job.model.folder,
        tokenizer_json=tokenizer_json,
        report=report,
        model_card=model_card(source, report),
    )
    layers = [blob.layer for blob in blobs] + documents
    manifest = add_manifest(job.layout, config, layers)
    size = parse_manifest(job.layout.read_blob(manifest.digest, max_bytes=MAX_MANIFEST_BYTES)).size_bytes
    run = job.recorder.record(job.model.launcher, bundle_digest=manifest.digest, bundle_bytes=size)
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
    format_version, minimum_client_version = needed_versions(tensors, source, job.model.outline.architecture)
    spec = job.request.quantizer
    return BundleConfig(
        format_version=format_version,
        minimum_client_version=minimum_client_version,
        producer=_PRODUCER,
        source=source,
        architecture=job.model.outline.architecture,
        untested_family=None if job.model.outline.is_family_tested else True,
        tokenizer=job.model.encoder.settings,
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
            workspace_bytes=2 * max(entry.element_count for entry in tensors if entry.blob != TRUNK_TITLE),
        ),
        quality={f"perplexity_{variant}": perplexity[variant] for variant in _VARIANTS} if perplexity else {},
    )
