"""Prepares a model, stage by stage. This is the page to read first; each stage is a module beside it.

    resolving      what the request names, and its fingerprint               identity · sources · hub
    downloading    the checkpoint: safetensors and JSON only                 hub · load_model · tokenization
    calibrating    calibration tokens, then the Fisher diagonal              documents · calibration · fisher
    selecting      the sensitivity mask: exactly k weights                   select_sensitive
    quantizing     each block: dense part quantised, sensitive part kept     quantize · quantizers · publish
    evaluating     perplexity in 16 bits, as the bundle, dense part alone    perplexity
    publishing     report, documents, manifest; not signed, not tagged       report · publish

Every stage leaves a checkpoint in the workspace: Fisher sums every few sequences, each finished block, the loss sums of
the evaluation. Called again after a SIGKILL at any moment, with the same request and workspace, it goes on from there
and ends with the same digest (on the same kind of processor and number of threads: float sums depend on their order).
Peak memory is the model plus 8 bytes per weight for the Fisher sums.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cloud_service.pipeline import fisher as fisher_stage
from cloud_service.pipeline.bundle_weights import write_dense_part, write_sensitive_part
from cloud_service.pipeline.calibration import calibration_sequences, tokens_digest
from cloud_service.pipeline.checkpoint import Workspace, require_space
from cloud_service.pipeline.documents import read_documents
from cloud_service.pipeline.hub import first_line
from cloud_service.pipeline.identity import ResolvedInput, resolve
from cloud_service.pipeline.load_model import LoadedModel, load_model
from cloud_service.pipeline.perplexity import LossSum, evaluation_windows, sum_losses
from cloud_service.pipeline.pinned_commit import release_pin
from cloud_service.pipeline.publish import (
    TensorBlob,
    add_block,
    add_documents,
    add_sensitive,
    add_trunk,
    license_of,
    model_card,
)
from cloud_service.pipeline.quantize import flat_index, quantize_unmasked
from cloud_service.pipeline.report import FisherFigures, fisher_figures, report_document, report_page
from cloud_service.pipeline.select_sensitive import Masks, overlap, select_largest, select_random
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
_CHECKPOINT_SEQUENCES = 8
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
        fingerprint: Digest of the input; equal inputs give equal bundles.
    """

    name: str
    tag: str
    manifest: Descriptor
    size_bytes: int
    report: dict[str, Any]
    report_html: Path
    fingerprint: str


@dataclass(frozen=True, slots=True)
class _Job:
    """What every stage needs."""

    request: PrepareRequest
    source: ResolvedInput
    policy: SourcePolicy
    workspace: Workspace
    layout: ImageLayout
    progress: ProgressSink
    model: LoadedModel
    encoder: TextEncoder


def prepare(
    request: PrepareRequest,
    *,
    workspace: Path,
    layout: ImageLayout,
    progress: ProgressSink,
    sources: SourcePolicy,
    device: str | None = None,
) -> PreparedBundle:
    """Make the bundle that ``request`` asks for and store it in ``layout``, unsigned and untagged.

    Args:
        request: What to prepare.
        workspace: A folder of this job alone, for checkpoints.
        layout: Where the blobs go.
        progress: Told about every step; may raise ``Interrupted``.
        sources: What may be read.
        device: Torch device; None means CUDA where there is one, else the CPU.

    Raises:
        ZoError: The model, a text, the hub or the disk; the subclass says who can act.
    """
    try:
        return _prepare(request, workspace, layout, progress, sources, device)
    except UnsupportedModel:
        release_pin(workspace)
        raise
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise ResourceError(
            f"out of memory: {first_line(error)}",
            needed="memory for the model and 8 bytes per weight more",
            next_step="free memory, take a larger machine or a smaller model; the same command goes on from here",
        ) from error


def _prepare(
    request: PrepareRequest,
    workspace: Path,
    layout: ImageLayout,
    progress: ProgressSink,
    sources: SourcePolicy,
    device: str | None,
) -> PreparedBundle:
    source = resolve(request, sources, progress, workspace=workspace)
    checkpoints = Workspace(workspace)
    if checkpoints.claim(source.fingerprint):
        progress.note("resuming from the checkpoints of an earlier attempt")
    model = load_model(source.folder, device=device)
    encoder = load_encoder(source.folder, model.architecture, model.context_length)
    job = _Job(request, source, sources, checkpoints, layout, progress, model, encoder)

    sequences = _calibrate(job)
    sums = _estimate_fisher(job, sequences)
    masks, figures, fisher = _select(job, sums)
    blobs = _quantize(job, masks, fisher)
    del fisher  # the evaluation needs its memory
    perplexity = _evaluate(job, blobs)
    return _publish(job, sequences, figures, blobs, perplexity)


def bundle_name(model_id: str) -> str:
    """Return the name that a model's bundle is published under by default."""
    parts = (re.sub(r"[^a-z0-9]+", "-", part).strip("-") for part in model_id.lower().split("/"))
    return "/".join(part for part in parts if part) or "model"


def _calibrate(job: _Job) -> Tensor:
    job.progress.stage(Stage.CALIBRATING, total=job.request.calibration.sequences, unit="sequences")
    saved = job.workspace.read_tensors("calibration")
    if saved is not None:
        return saved[0]["tokens"]
    _evaluation_documents(job)  # a text that streams is asked for all of its documents now, not hours later
    is_same_text = job.source.calibration == job.source.evaluation
    tokens = calibration_sequences(
        read_documents(job.source.calibration, job.policy),
        job.encoder,
        job.request.calibration,
        held_out=job.request.evaluation.documents if is_same_text else 0,
    )
    job.workspace.write_tensors("calibration", {"tokens": tokens}, {})
    return tokens


def _estimate_fisher(job: _Job, sequences: Tensor) -> fisher_stage.FisherSums:
    parameters = job.model.parameters
    weights = {name: parameters[name] for name in job.model.linear_names}
    sums = fisher_stage.empty_sums(weights)
    if (saved := job.workspace.read_tensors("fisher")) is not None:
        sums.restore(*saved)
        job.progress.note(f"Fisher sums of {sums.count} sequences restored")
    sums_bytes = 8 * sum(weight.numel() for weight in weights.values())
    if sums.count < len(sequences):
        require_space(job.workspace.folder, sums_bytes * (1 if saved else 2), "the Fisher checkpoint")
    interval = _CHECKPOINT_SEQUENCES + sums_bytes // 2**30

    def after_sequence(done: fisher_stage.FisherSums) -> None:
        if done.count % interval == 0 or done.count == len(sequences):
            job.workspace.write_tensors("fisher", *done.to_tensors())
        job.progress.advance(done.count)

    job.progress.advance(sums.count)
    recomputes = fisher_stage.needs_recomputation(job.model.network, sequences.shape[1])
    fisher_stage.accumulate(
        job.model.network,
        weights,
        sequences,
        sums,
        recomputed_blocks=job.model.blocks if recomputes else (),
        after_sequence=after_sequence,
    )
    return sums


def _select(job: _Job, sums: fisher_stage.FisherSums) -> tuple[Masks, FisherFigures, dict[str, Tensor]]:
    request = job.request
    job.progress.stage(Stage.SELECTING)
    is_fisher = request.mask_source == "fisher"
    saved = job.workspace.read_json("figures")
    halves = (sums.even, sums.odd) if is_fisher and not saved else ()
    half_masks = [select_largest(half, request.sparsity, request.scope) for half in halves]
    fisher = sums.into_diagonal()
    if is_fisher:
        masks = select_largest(fisher, request.sparsity, request.scope)
    else:
        sizes = {name: values.numel() for name, values in fisher.items()}
        masks = select_random(sizes, request.sparsity, request.scope, request.calibration.seed)
    agreement = overlap(*half_masks) if half_masks else None
    figures = FisherFigures(**saved) if saved else fisher_figures(fisher, masks, agreement)
    job.workspace.write_json("figures", dataclasses.asdict(figures))
    return masks, figures, fisher


def _quantize(job: _Job, masks: Masks, fisher: Mapping[str, Tensor]) -> list[TensorBlob]:
    prefixes = job.model.block_prefixes
    job.progress.stage(Stage.QUANTIZING, total=len(prefixes), unit="blocks")
    names = list(job.model.parameters)
    require_space(job.layout.root, sum(p.numel() for p in job.model.parameters.values()), "the bundle")
    blobs = []
    for index, prefix in enumerate(prefixes):
        members = [name for name in names if name.startswith(prefix)]
        blobs.append(_restored_block(job, index) or _quantize_block(job, index, members, masks, fisher))
        job.progress.advance(index + 1)
    trunk = {name: job.model.weight(name) for name in names if not name.startswith(tuple(prefixes))}
    values = {name: _sensitive_values(job.model, name, masks) for name in masks}
    return [*blobs, add_trunk(job.layout, trunk), add_sensitive(job.layout, masks, values)]


def _restored_block(job: _Job, index: int) -> TensorBlob | None:
    record = job.workspace.read_json(f"block-{index:05d}")
    blob = TensorBlob.from_json(record) if record else None
    return blob if blob is not None and job.layout.has_blob(blob.layer.digest) else None


def _quantize_block(
    job: _Job, index: int, members: list[str], masks: Masks, fisher: Mapping[str, Tensor]
) -> TensorBlob:
    dense_parts = {
        name: quantize_unmasked(
            job.model.weight(name), fisher[name].to(job.model.device), masks[name], job.request.quantizer
        )
        for name in members
        if name in masks
    }
    others = {name: job.model.weight(name) for name in members if name not in masks}
    blob = add_block(job.layout, index, dense_parts, masks, others)
    job.workspace.write_json(f"block-{index:05d}", blob.to_json())
    return blob


def _sensitive_values(model: LoadedModel, name: str, masks: Masks) -> np.ndarray[Any, np.dtype[np.float16]]:
    weight = model.weight(name).flatten()
    return np.asarray(weight[flat_index(masks[name], weight.device)].to(torch.float16).cpu().numpy())


def _evaluate(job: _Job, blobs: list[TensorBlob]) -> dict[str, Any] | None:
    count = job.request.evaluation.documents
    job.progress.stage(Stage.EVALUATING)
    if count == 0:
        return None
    documents = _evaluation_documents(job)
    windows = evaluation_windows(documents, job.encoder)
    job.progress.stage(Stage.EVALUATING, total=len(_VARIANTS) * len(windows), unit="windows")
    job.model.compute_in_float32()
    sums = {}
    for position, variant in enumerate(_VARIANTS):
        if variant != "16bit":
            write_dense_part(job.model, job.layout, blobs)
        if variant == "bundle":
            write_sensitive_part(job.model, job.layout, blobs)
        sums[variant] = _evaluate_variant(job, variant, windows, position * len(windows))
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


def _evaluate_variant(job: _Job, variant: str, windows: list[list[int]], done_before: int) -> LossSum:
    saved = job.workspace.read_json(f"loss-{variant}")

    def after_batch(total: LossSum) -> None:
        job.workspace.write_json(f"loss-{variant}", dataclasses.asdict(total))
        job.progress.advance(done_before + total.windows)

    return sum_losses(job.model.network, windows, LossSum(**saved) if saved else LossSum(), after_batch=after_batch)


def _publish(
    job: _Job, sequences: Tensor, figures: FisherFigures, blobs: list[TensorBlob], perplexity: dict[str, Any] | None
) -> PreparedBundle:
    job.progress.stage(Stage.PUBLISHING)
    source = SourceModel(id=job.source.model_id, revision=job.source.revision, license=license_of(job.source.folder))
    config = _bundle_config(job, source, _mask_provenance(job, sequences, figures, blobs), blobs, perplexity)
    report = report_document(source, config.mask, config.quantizer, figures, blobs, perplexity)
    documents = add_documents(
        job.layout,
        job.source.folder,
        tokenizer_json=job.encoder.to_json(),
        report=report,
        model_card=model_card(source, report),
    )
    layers = [blob.layer for blob in blobs] + documents
    manifest = add_manifest(job.layout, config, layers)
    return PreparedBundle(
        name=job.request.name or bundle_name(job.source.model_id),
        tag=job.request.tag,
        manifest=manifest,
        size_bytes=parse_manifest(job.layout.read_blob(manifest.digest, max_bytes=MAX_MANIFEST_BYTES)).size_bytes,
        report=report,
        report_html=job.workspace.write_bytes("report.html", report_page(report)),
        fingerprint=job.source.fingerprint,
    )


def _mask_provenance(job: _Job, sequences: Tensor, figures: FisherFigures, blobs: list[TensorBlob]) -> MaskProvenance:
    return MaskProvenance(
        source=job.request.mask_source,
        scope=job.request.scope,
        sparsity=job.request.sparsity,
        sensitive_count=sum(entry.sensitive_count for blob in blobs for entry in blob.quantized),
        calibration_text=job.source.calibration.name,
        calibration_sequences=sequences.shape[0],
        calibration_tokens_per_sequence=sequences.shape[1],
        calibration_seed=job.request.calibration.seed,
        calibration_digest=tokens_digest(sequences),
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
        architecture=job.model.architecture,
        tokenizer=job.encoder.settings,
        mask=mask,
        quantizer=Quantizer(
            method=spec.method, bits=spec.bits, group_size=None if spec.method == "lut" else spec.group_size
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
