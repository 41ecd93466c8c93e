"""A model and how to compute with it: which memory plan, which devices, where the Fisher shards run.

    estimate_fisher          passes, recomputation, sums and totals as planned, on the launcher
    published_inputs         the network in the compute dtype, for error compensation
    load_for_evaluation      the network in the dtype that perplexity is measured in

Where the plan streams the network, both hold one block of it at a time.
Preparations and reports go through the same functions, so that a report measures what a preparation would do. The
network is loaded anew for each of them and is in memory for as long as its user keeps it: never two at a time.
Costs what is asked for. Knows nothing about masks and quantisers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from cloud_service.memory_budget import MemoryBudget
from cloud_service.pipeline.calibration.sequences import Calibration
from cloud_service.pipeline.fisher.launchers.local import FisherLauncher, FisherPasses, FisherWork, LocalLauncher
from cloud_service.pipeline.fisher.shards import half_of
from cloud_service.pipeline.fisher.totals import FisherTotals
from cloud_service.pipeline.model.gguf.checkpoint import missing_copy_bytes, read_gguf, write_checkpoint
from cloud_service.pipeline.model.gguf.source_codes import SourceCodes
from cloud_service.pipeline.model.hub import first_line
from cloud_service.pipeline.model.load_model import (
    LoadedModel,
    ModelOutline,
    evaluation_dtype,
    load_model,
    read_outline,
)
from cloud_service.pipeline.model.streamed_model import stream_model
from cloud_service.pipeline.model.tokenization import TextEncoder, load_encoder
from cloud_service.pipeline.named_input import NamedInput
from cloud_service.pipeline.opening.identity import ResolvedInput
from cloud_service.pipeline.planning.input_plan import plan_input
from cloud_service.pipeline.planning.machine_probe import accelerator_indices
from cloud_service.pipeline.planning.model_shape import ModelShape, read_model_shape, shape_of_tensors
from cloud_service.pipeline.planning.plan_table import plan_line
from cloud_service.pipeline.planning.preparation_plan import PreparationPlan
from cloud_service.pipeline.quantizers.published_inputs import PublishedInputs
from cloud_service.pipeline.workspace import Workspace, require_space
from cloud_service.progress import ProgressSink
from shared.api import Stage
from shared.bundle.config import DequantizedFile
from shared.errors import ResourceError, UnsupportedModel

_COPY = "checkpoint"
_SUM_BYTES = 4
_HALVES = 2


@dataclass(frozen=True, slots=True)
class Means:
    """What the work is done with; none of it changes a result.

    Attributes:
        launcher: Where the Fisher shards are computed.
        budget: Memory that may be used.
        device: Torch device; None means all CUDA devices where there are any, else the CPU.
        after_plan: Told the bytes of main memory that the plan takes at most, before any of it is used.
    """

    launcher: FisherLauncher = field(default_factory=LocalLauncher)
    budget: MemoryBudget = field(default_factory=MemoryBudget)
    device: str | None = None
    after_plan: Callable[[int], None] = lambda _: None


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """A checkpoint that is not loaded, and the plan for it.

    Attributes:
        folder: The checkpoint; of a GGUF file, its 16-bit copy in the workspace.
        outline: Its names and shapes.
        encoder: Its tokenizer.
        plan: How memory is used.
        accelerators: Indices of the accelerators that may be used; empty on a CPU.
        launcher: Where the Fisher shards are computed.
        dequantized_from: The GGUF file that the checkpoint is a copy of; None where it is the model's own.
        source_codes: The codes that linear weights have in it; None where they are not asked for.
    """

    folder: Path
    outline: ModelOutline
    encoder: TextEncoder
    plan: PreparationPlan
    accelerators: tuple[int, ...]
    launcher: FisherLauncher
    dequantized_from: DequantizedFile | None = None
    source_codes: SourceCodes | None = None

    @property
    def device(self) -> str:
        """The device that computes; the first of several."""
        return f"cuda:{self.accelerators[0]}" if self.accelerators else "cpu"

    @property
    def evaluation_dtype(self) -> torch.dtype:
        """What perplexity is measured in."""
        return evaluation_dtype(self.outline, self.device)

    @property
    def evaluation_dtype_name(self) -> str:
        """Its name, as reports have it: ``float32``, ``float16`` or ``bfloat16``."""
        return str(self.evaluation_dtype).removeprefix("torch.")

    def estimate_fisher(self, calibration: Calibration, workspace: Workspace, progress: ProgressSink) -> FisherTotals:
        """Return the Fisher totals of the sequences; what the workspace has of them is not computed again.

        Args:
            calibration: The sequences, always the same ones for a workspace.
            workspace: Where the totals lie.
            progress: Told the sequences done, counted in every pass; may raise ``Interrupted``.

        Raises:
            UnsupportedModel: A weight or a loss is not finite.
            ResourceError: The device has too little memory, or the cluster cannot be used.
            DiskError: The disk does not hold the totals.
        """
        blocks, plan = self.outline.block_linears, self.plan
        totals = FisherTotals(workspace, blocks, len(calibration), keeps_in_memory=plan.totals_in_memory)
        accumulates_on_host = plan.accumulators == "host"
        passes = FisherPasses(plan.passes, accumulates_on_host, plan.recomputes_activations, plan.streamed_shards)
        sequences = len(passes.groups) * len(calibration)
        progress.stage(Stage.CALIBRATING, total=sequences, unit="sequences")
        if totals.is_complete:
            progress.advance(sequences)
            return totals
        needed = missing_fisher_bytes(self.outline, totals, len(calibration))
        require_space(workspace.folder, needed, "the Fisher sums of both halves")
        work = FisherWork(
            self.outline,
            self.folder,
            calibration,
            passes,
            self.device,
            plan.device_map,
            worker_host_bytes=plan.stage("calibrating").host_bytes,
            host_budget=plan.host_budget,
        )
        if others := totals.begun_in() - {self.launcher.arithmetic(work)}:
            progress.note(f"what {', '.join(sorted(others))} began starts anew, in {self.launcher.arithmetic(work)}")
        self.launcher.estimate(work, totals, after_sequence=progress.advance)
        return totals

    def published_inputs(self, calibration: Calibration) -> PublishedInputs:
        """Return what enters the blocks, for error compensation; the network is loaded when it is first needed."""
        return PublishedInputs(self._load_or_stream, calibration)

    def load_for_evaluation(self) -> LoadedModel:
        """Return the network in ``evaluation_dtype``."""
        return self._load_or_stream(self.evaluation_dtype)

    def load(self, dtype: torch.dtype | None = None) -> LoadedModel:
        """Return the whole network on the planned devices; ``dtype`` is None for what gradients are computed in."""
        return load_model(self.outline, device=self.device, device_map=self.plan.device_map, dtype=dtype)

    def _load_or_stream(self, dtype: torch.dtype | None = None) -> LoadedModel:
        if self.plan.streamed_shards is not None:
            return stream_model(self.outline, dtype=dtype)
        return self.load(dtype)


def plan_model(
    named: NamedInput, source: ResolvedInput, means: Means, workspace: Workspace, progress: ProgressSink
) -> PlannedModel:
    """Return the model of an input with its plan, which ``progress`` receives; no weight is loaded.

    A GGUF file is planned from its header, and then dequantised into the workspace.

    Args:
        named: What to work on.
        source: What that turned out to be.
        means: What to do it with.
        workspace: Where checkpoints will lie; its folder must exist.
        progress: Told about the plan.

    Raises:
        UnsupportedModel: The model is not served.
        ResourceError: No way to do the work fits the budget.
        DiskError: The workspace cannot hold the 16-bit copy of a GGUF file.
    """
    if source.gguf_file is None or source.gguf_digest is None:
        folder, file, stored = source.folder, None, None
        outline = read_outline(folder, allow_untested=named.allow_untested)
        encoder = load_encoder(folder, outline.architecture, outline.context_length)
        shape = read_model_shape(folder, allow_untested=named.allow_untested)
        plan = _announced_plan(named, shape, means, workspace, progress)
    else:
        folder, found = workspace.folder / _COPY, read_gguf(source.folder, source.gguf_file)
        shape = shape_of_tensors(found.architecture, found.shapes)
        plan = _announced_plan(named, shape, means, workspace, progress, copied_bytes=found.copied_bytes)
        if missing := missing_copy_bytes(found, folder):
            require_space(workspace.folder, missing, f"the 16-bit copy of {found.name}")
        write_checkpoint(found, folder, progress)
        file = DequantizedFile(file=found.name, digest=source.gguf_digest, tensor_types=found.header.type_counts)
        outline = read_outline(folder)
        encoder = load_encoder(folder, outline.architecture, outline.context_length)
        stored = SourceCodes(found)
    codes = _codes_to_keep(named, source, outline, stored, progress)
    for note in encoder.notes:
        progress.note(note)
    devices = accelerator_indices(means.device)
    return PlannedModel(folder, outline, encoder, plan, devices, means.launcher, file, codes)


def _codes_to_keep(
    named: NamedInput, source: ResolvedInput, outline: ModelOutline, codes: SourceCodes | None, progress: ProgressSink
) -> SourceCodes | None:
    """Return the source's codes where they are asked for; where they only could be, say so.

    Raises:
        UnsupportedModel: They are asked for, and there are none.
    """
    found = Counter(filter(None, map(codes.type_of, outline.linear_names))) if codes else Counter[str]()
    types = " and ".join(sorted(found))
    if named.quantizer is None or named.quantizer.method != "source":
        if named.quantizer is not None and found:
            progress.note(f"the file's weights are {types}: --quantizer source would keep these codes exactly")
        return None
    if not found:
        what = f"the GGUF file {source.gguf_file}, none of whose linear weights is" if codes else "not a GGUF file of"
        raise UnsupportedModel(
            f"{source.model_id} is {what} Q4_0 or Q4_1",
            needed="a file whose 4-bit codes can be kept, for --quantizer source",
            next_step="choose another quantizer, such as lut",
            param="quantizer.method",
        )
    progress.note(f"{found.total()} of {len(outline.linear_names)} linear weights keep their codes: {types}")
    return codes


def _announced_plan(
    named: NamedInput,
    shape: ModelShape,
    means: Means,
    workspace: Workspace,
    progress: ProgressSink,
    *,
    copied_bytes: int = 0,
) -> PreparationPlan:
    plan = plan_input(
        named, shape, means.budget, device=means.device, workspace=workspace.folder, copied_bytes=copied_bytes
    )
    progress.note(f"plan: {plan_line(plan)}")
    means.after_plan(plan.host_bytes)
    return plan


def missing_fisher_bytes(outline: ModelOutline, totals: FisherTotals, sequences: int) -> int:
    """Return the disk space that a Fisher pass still needs: each block's halves that are not stored, one temporary.

    Args:
        outline: The model.
        totals: What is stored, before anything is added.
        sequences: Number N of calibration sequences.
    """
    sizes = outline.linear_sizes
    blocks = [_SUM_BYTES * sum(sizes[name] for name in names) for names in outline.block_linears]
    stored = (_stored_halves(totals.next_shard([block]), sequences) for block in range(len(blocks)))
    return sum((_HALVES - halves) * size for halves, size in zip(stored, blocks, strict=True)) + max(blocks)


def _stored_halves(next_shard: int, sequences: int) -> int:
    return half_of(sequences, next_shard - 1) + 1 if next_shard else 0


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turn a failed allocation into a ``ResourceError``."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise ResourceError(
            f"out of memory: {first_line(error)}",
            needed="the memory that zo-cloud plan predicts",
            next_step="free memory, take a larger machine or a smaller model; the same command goes on from here",
        ) from error
