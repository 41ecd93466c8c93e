"""The most memory that each stage uses, host and accelerators, for one way of running it.

    calibrating   weights + accumulators of the pass's blocks + totals + one sequence (``sequence_memory``)
    selecting     one tensor and its histograms; the mask
    quantizing    one tensor, or a small block's tensors, with importance and the quantiser's scratch
                  with GPTQ also the weights, a block's second moments and the hidden states of all sequences;
                  of an embedding in codes, less than what loading it takes
    evaluating    weights + one batch without gradients

The network is in memory while gradients, second moments or losses are computed; of a streamed one the trunk and one
block, with the hidden states of the sequences that go through the blocks together. Without accelerators all of it is
host memory, where the allocator's free pieces (half of what one sequence allocates in pieces below 32 MiB, measured)
come on top.
Knows nothing about time or about how the choice is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cloud_service.pipeline.planning.model_shape import ModelShape
from cloud_service.pipeline.planning.sequence_memory import SequenceMemory
from cloud_service.pipeline.planning.workload import Machine, Workload
from cloud_service.pipeline.quantizers.weight_groups import MOST_TOGETHER

Place = Literal["accelerator", "host"]
Stage = Literal["calibrating", "selecting", "quantizing", "evaluating"]
STAGES: tuple[Stage, ...] = ("calibrating", "selecting", "quantizing", "evaluating")

CONTEXT_BYTES = 600 << 20
"""What a CUDA context and cuBLAS' workspace take of an accelerator."""

_SUM_BYTES = 4
_FIRST_USE_BYTES = 33 << 20
_LARGEST_HEAP_PIECE = 32 << 20
_HEAP_SLACK = 0.5
_LOADING_BYTES = 8
_SELECTING_BYTES = 24
_QUANTIZING_BYTES = 40
_QUANTIZER_SCRATCH = 32 << 20
_REFIT_BYTES = 24
_MASK_BYTES = 64
_LOGITS_BATCH_BYTES = 64 << 20

HIDDEN_BYTES_AT_ONCE = 1 << 30
"""Hidden states of the windows that go through a streamed network's blocks together, when losses are measured."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Which blocks lie where.

    Attributes:
        blocks: For each device that is used, the range of its blocks.
        rear: The device of what stands behind the blocks; the front is on the first.
    """

    blocks: tuple[range, ...]
    rear: int


@dataclass(frozen=True, slots=True)
class FisherRun:
    """One way to run the Fisher pass.

    Attributes:
        passes: Block indices of each pass.
        recomputes_activations: Gradient checkpointing, block by block.
        accumulators: Where the float32 sums of a pass lie; on a CPU both are host memory.
        totals_in_memory: Whether the totals of a pass's blocks stay in host memory between shards; of a streamed
            network those of the block that is in memory.
        streamed_shards: Shards that go through the blocks together while one block at a time is in memory; None: the
            whole network is.
    """

    passes: tuple[tuple[int, ...], ...]
    recomputes_activations: bool
    accumulators: Place
    totals_in_memory: bool
    streamed_shards: int | None = None


@dataclass(frozen=True, slots=True)
class PeakModel:
    """Predicts bytes for a model, a workload and a machine."""

    shape: ModelShape
    workload: Workload
    machine: Machine

    @property
    def sequence(self) -> SequenceMemory:
        """The pass of one sequence."""
        return SequenceMemory(self.shape, self.workload.tokens, self.machine.value_bytes)

    def accelerator_calibrating(self, run: FisherRun, blocks: range, *, has_front: bool, has_rear: bool) -> int:
        """Return the bytes that the Fisher pass needs of the accelerator that holds these parts."""
        weights = self.weight_bytes(blocks, has_front=has_front, has_rear=has_rear)
        return CONTEXT_BYTES + weights + max(self._pass_bytes(run, group, blocks, has_front) for group in run.passes)

    def least_on_accelerators(self, run: FisherRun, devices: int) -> int:
        """Return bytes that all accelerators together need at least, however the model is spread: a quick refusal."""
        sums = max(self._sum_bytes(group) for group in run.passes) if run.accumulators == "accelerator" else 0
        return devices * CONTEXT_BYTES + self.shape.elements * self.machine.value_bytes + sums

    def weight_bytes(self, blocks: range, *, has_front: bool, has_rear: bool) -> int:
        """Return the bytes of the weights of these parts in the compute dtype."""
        elements = sum(self.shape.blocks[block].elements for block in blocks)
        elements += self.shape.embedding_elements if has_front else 0
        elements += self.shape.head_elements if has_rear else 0
        return elements * self.machine.value_bytes

    def host(self, stage: Stage, run: FisherRun) -> int:
        """Return the bytes of main memory that a stage needs."""
        parts = {
            "calibrating": self._host_calibrating(run),
            "selecting": self._selecting_bytes,
            "quantizing": self._host_quantizing(run),
            "evaluating": self._host_evaluating(run),
        }
        left = 0 if stage == "calibrating" or self.machine.accelerator_budgets else self._left_in_heap(run)
        return self.machine.host_baseline + _FIRST_USE_BYTES + parts[stage] + left

    def accelerators(self, stage: Stage, run: FisherRun, placement: Placement) -> tuple[int, ...]:
        """Return the bytes of each accelerator that a stage needs."""
        used = len(placement.blocks)
        if stage == "calibrating":
            return tuple(
                self.accelerator_calibrating(run, blocks, has_front=index == 0, has_rear=index == placement.rear)
                for index, blocks in enumerate(placement.blocks)
            )
        if (stage == "evaluating" and self.workload.evaluation_tokens) or (
            stage == "quantizing" and self.workload.compensates
        ):
            beside = self._quantizing_bytes
            if stage == "evaluating":
                beside = self._evaluating_bytes
            return tuple(
                CONTEXT_BYTES + beside + self.weight_bytes(blocks, has_front=i == 0, has_rear=i == placement.rear)
                for i, blocks in enumerate(placement.blocks)
            )
        only = CONTEXT_BYTES + (self._quantizing_bytes if stage == "quantizing" else 0)
        return (only,) + (0,) * (used - 1)

    def _pass_bytes(self, run: FisherRun, group: Sequence[int], blocks: range, has_loss: bool) -> int:
        wanted = [block for block in group if block in blocks]
        sums = sum(self.shape.blocks[block].linear_elements for block in wanted) * _SUM_BYTES
        sequence = self.sequence.peak(blocks, set(group), recomputes=run.recomputes_activations, has_loss=has_loss)
        return sequence + (sums if run.accumulators == "accelerator" else 0)

    def _host_calibrating(self, run: FisherRun) -> int:
        if run.streamed_shards is not None:
            return self._host_streaming(run.streamed_shards)
        everything = range(len(self.shape.blocks))
        loading = _LOADING_BYTES * self.shape.largest_tensor
        totals = max(self._sum_bytes(group) for group in run.passes) if run.totals_in_memory else 0
        stored = 0 if run.totals_in_memory else _SUM_BYTES * max(b.linear_elements for b in self.shape.blocks)
        if self.machine.accelerator_budgets:
            on_host = max(self._sum_bytes(group) for group in run.passes) if run.accumulators == "host" else 0
            gradient = (self.machine.value_bytes + _SUM_BYTES) * self.shape.largest_linear
            return max(loading, on_host + totals + max(gradient, stored + _SUM_BYTES * self.shape.largest_linear))
        weights = self.weight_bytes(everything, has_front=True, has_rear=True)
        passes = [self._sum_bytes(group) + self._heap_peak(run, group, stored) for group in run.passes]
        return weights + max(loading, totals + max(passes))

    def _host_streaming(self, shards: int) -> int:
        """Return the bytes of the Fisher pass over a streamed network: reading, the loss, or one block's turn."""
        hidden = self._streamed_hidden_bytes(shards)
        block = max(self.shape.blocks, key=lambda candidate: candidate.linear_elements)
        # The sums of a shard, the total, and what is written of it or was read.
        sums = 3 * _SUM_BYTES * block.linear_elements
        one = range(len(self.shape.blocks) - 1, len(self.shape.blocks))
        sequence = self.sequence.peak(one, set(one), recomputes=True, has_loss=False)
        loss = self.sequence.peak((), set(one), recomputes=True)
        slack = int(_HEAP_SLACK * (hidden + sequence))
        turn = block.elements * self.machine.value_bytes + sums + sequence
        return self._trunk_bytes + hidden + slack + max(self._reading_bytes, loss, turn)

    def _streamed_hidden_bytes(self, shards: int) -> int:
        """Return the bytes of hidden states in front of every block, behind the last one, and of one's gradients."""
        sequences = -(-self.workload.sequences // self.workload.shards) * shards
        return sequences * self.sequence.hidden_bytes * (len(self.shape.blocks) + 2)

    @property
    def _trunk_bytes(self) -> int:
        return self.weight_bytes(range(0), has_front=True, has_rear=True)

    @property
    def _reading_bytes(self) -> int:
        """Return what reading a block of a streamed network holds: the block, and one tensor as it is stored."""
        block = max(candidate.elements for candidate in self.shape.blocks)
        return block * self.machine.value_bytes + _LOADING_BYTES * self.shape.largest_tensor

    def _network_bytes(self, run: FisherRun) -> int:
        """Return the bytes of a network whose blocks are run without gradients."""
        if run.streamed_shards is not None:
            return self._trunk_bytes + self._reading_bytes
        return self.weight_bytes(range(len(self.shape.blocks)), has_front=True, has_rear=True)

    def _heap_peak(self, run: FisherRun, group: Sequence[int], stored: int) -> int:
        """Return one sequence's bytes with what the allocator keeps free; adding to stored totals finds that kept."""
        reached = range(min(group), len(self.shape.blocks))
        held, slack = self._heap(group)
        sequence = self.sequence.peak(reached, set(group), recomputes=run.recomputes_activations)
        return max(sequence + slack, min(held, sequence) + slack + stored)

    def _heap(self, group: Sequence[int]) -> tuple[int, int]:
        """Return the bytes of one sequence in pieces that the allocator does not give back, and what it keeps free."""
        held = sum(self._heap_part(block in group) for block in range(min(group), len(self.shape.blocks)))
        logits = 4 * self.workload.tokens * self.shape.vocabulary * 4
        return held, int(_HEAP_SLACK * (held + (logits if logits < 4 * _LARGEST_HEAP_PIECE else 0)))

    def _left_in_heap(self, run: FisherRun) -> int:
        """Return what the allocator still keeps when the Fisher pass is over, as measured."""
        if run.streamed_shards is not None:
            return int(_HEAP_SLACK * self._streamed_hidden_bytes(run.streamed_shards))
        held, slack = max(self._heap(group) for group in run.passes)
        return slack + (0 if run.recomputes_activations else held // 2)

    def _heap_part(self, has_gradient: bool) -> int:
        """Return what a block saves in pieces that the allocator does not give back."""
        tokens, value = self.workload.tokens, self.machine.value_bytes
        saved = self.sequence.block_bytes(has_gradient=has_gradient)
        middle = tokens * self.shape.intermediate * value
        if tokens * self.shape.hidden * value >= _LARGEST_HEAP_PIECE:
            return 0
        matrices = self.sequence.saved.matrices_of_the_mlp(has_gradient=has_gradient)
        return saved - matrices * middle if middle >= _LARGEST_HEAP_PIECE else saved

    def _sum_bytes(self, group: Sequence[int]) -> int:
        return _SUM_BYTES * sum(self.shape.blocks[block].linear_elements for block in group)

    @property
    def _selecting_bytes(self) -> int:
        mask = _MASK_BYTES * self.workload.sensitive_share * self.shape.linear_elements
        return _SELECTING_BYTES * self.shape.largest_linear + int(mask)

    @property
    def _quantizing_bytes(self) -> int:
        block = max(self.shape.blocks, key=lambda candidate: candidate.linear_elements)
        together = max(block.largest_linear, min(block.linear_elements, MOST_TOGETHER))
        scratch = _QUANTIZING_BYTES * together + _QUANTIZER_SCRATCH + block.elements
        if self.workload.compensates:
            inputs = {columns for _, columns in block.linears}
            scratch += 4 * sum(columns**2 for columns in inputs) + 3 * 4 * max(inputs) ** 2
        if self.workload.refits:
            scratch += _REFIT_BYTES * together
        return scratch

    def _host_quantizing(self, run: FisherRun) -> int:
        mask = _MASK_BYTES * self.workload.sensitive_share * self.shape.linear_elements
        block = max(candidate.elements for candidate in self.shape.blocks)
        work = 2 * block + _LOADING_BYTES * self.shape.largest_tensor
        if not self.machine.accelerator_budgets:
            work = max(work, self._quantizing_bytes)
        return int(mask) + work + self._compensation_bytes(run)

    def _compensation_bytes(self, run: FisherRun) -> int:
        """Return what GPTQ keeps in host memory: hidden states, and on a CPU the weights."""
        if not self.workload.compensates:
            return 0
        hidden = self.workload.sequences * self.sequence.hidden_bytes
        if self.machine.accelerator_budgets:
            return hidden
        return hidden + self._network_bytes(run)

    @property
    def _evaluating_bytes(self) -> int:
        """One batch of windows: as many as the limit on logits allows, and no more than there are."""
        rows = max(1, _LOGITS_BATCH_BYTES // (4 * self.shape.vocabulary * self.workload.tokens))
        windows = -(-self.workload.evaluation_tokens // self.workload.tokens)
        return self.sequence.forward_bytes(min(rows, windows))

    def _host_evaluating(self, run: FisherRun) -> int:
        loading = _LOADING_BYTES * self.shape.largest_tensor if self.workload.evaluation_tokens else 0
        if self.machine.accelerator_budgets or not loading:
            return loading
        if run.streamed_shards is None:
            return self._network_bytes(run) + max(loading, self._evaluating_bytes)
        hidden = min(
            HIDDEN_BYTES_AT_ONCE, self.workload.evaluation_tokens * self.shape.hidden * self.machine.value_bytes
        )
        stored = max(block.elements for block in self.shape.blocks)
        return self._network_bytes(run) + stored + hidden + self._evaluating_bytes
