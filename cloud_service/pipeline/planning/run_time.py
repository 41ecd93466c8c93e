"""How long each stage takes, for one way of running it.

    a pass over one sequence, floating-point operations
        forward                     Σ over all blocks of 2·T·n_b + attention, and the output matrix
        input gradients             the same over the blocks that the backward pass reaches, and the output matrix
        weight gradients            2·T·n_b over the blocks of the group
        computed again              a forward pass over the blocks reached, where activations are not kept
    squares                         bytes read and written per weight, on the device that holds the accumulators
    totals                          per shard: over the link, added, written (and read, where they are not kept)
    a streamed network              its 16-bit files read and cast: twice for each group of shards, and again for each
                                    way through the blocks that second moments and losses take

Symbols: T tokens · n_b linear weights of block b. Compute and memory traffic are taken one after the other, so a
prediction is an upper one where they overlap. Knows nothing about memory limits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cloud_service.pipeline.planning.model_shape import ModelShape
from cloud_service.pipeline.planning.peak_memory import HIDDEN_BYTES_AT_ONCE, FisherRun, Stage
from cloud_service.pipeline.planning.workload import Machine, Workload

_SQUARE_BYTES = {2: 18, 4: 16}
"""Bytes moved per weight: its gradient written and read (cast to float32 where bfloat16), its sum read and written."""

_HOST_SQUARE_BYTES = 18
_SUM_BYTES = 4
_HALVES = 2
_READS_TO_SELECT = 8
_VARIANTS = 3
_DEQUANTIZED_BYTES_PER_SECOND = 1e8
"""Written by one thread, measured on Q4_1; other types are up to four times as fast or as slow."""
_STORED_BYTES = 2
_REFIT_PRODUCTS = 10
"""Five products of a weight with its inputs' second moments, in the units of GPTQ's triangular one."""


@dataclass(frozen=True, slots=True)
class TimeModel:
    """Predicts seconds for a model, a workload and a machine."""

    shape: ModelShape
    workload: Workload
    machine: Machine

    def seconds(self, stage: Stage, run: FisherRun) -> float:
        """Return the seconds that a stage takes."""
        rates, totals = self.machine.rates, _HALVES * _SUM_BYTES * self.shape.linear_elements
        match stage:
            case "calibrating":
                return self.calibrating(run)
            case "selecting":
                return _READS_TO_SELECT * totals / rates.host_bytes_per_second
            case "quantizing":
                reading = totals / rates.disk_bytes_per_second
                coding = self.shape.linear_elements / rates.quantized_weights_per_second
                moments = self._compensation_flops / rates.flops_per_second
                streaming = 2 * self._reading_seconds(run) if self.workload.compensates else 0
                return reading + coding + moments + streaming
            case "evaluating":
                tokens = _VARIANTS * self.workload.evaluation_tokens
                per_token = self._forward_flops(range(len(self.shape.blocks))) / self.workload.tokens
                groups = -(-self._evaluated_bytes // HIDDEN_BYTES_AT_ONCE) if tokens else 0
                streaming = _VARIANTS * groups * self._reading_seconds(run)
                return tokens * per_token / rates.flops_per_second + streaming

    def copying(self) -> float:
        """Return the seconds that it takes to write the 16-bit copy of a quantised file."""
        written = self.workload.copied_bytes / self.machine.rates.disk_bytes_per_second
        return written + self.workload.copied_bytes / _DEQUANTIZED_BYTES_PER_SECOND

    def calibrating(self, run: FisherRun) -> float:
        """Return the seconds of the Fisher pass over all sequences."""
        sequences = sum(self._sequence_seconds(run, group) for group in run.passes) * self.workload.sequences
        streaming = 2 * self._sweeps(run) * self._reading_seconds(run)
        return sequences + self._totals_seconds(run) + streaming

    def _sweeps(self, run: FisherRun) -> int:
        return -(-self.workload.shards // run.streamed_shards) if run.streamed_shards else 0

    def _reading_seconds(self, run: FisherRun) -> float:
        """Return the seconds of reading a streamed network once; 0 for one that is in memory."""
        if run.streamed_shards is None:
            return 0
        stored = _STORED_BYTES * self.shape.elements
        cast = stored + self.machine.value_bytes * self.shape.elements
        return stored / self.machine.rates.disk_bytes_per_second + cast / self.machine.rates.host_bytes_per_second

    @property
    def _evaluated_bytes(self) -> int:
        return self.workload.evaluation_tokens * self.shape.hidden * self.machine.value_bytes

    def _sequence_seconds(self, run: FisherRun, group: Sequence[int]) -> float:
        reached = range(min(group), len(self.shape.blocks))
        back = self._forward_flops(reached)
        flops = self._forward_flops(range(len(self.shape.blocks))) + back
        flops += sum(2 * self.workload.tokens * self.shape.blocks[block].linear_elements for block in group)
        if run.recomputes_activations:
            flops += back - self._head_flops
        weights = sum(self.shape.blocks[block].linear_elements for block in group)
        rates = self.machine.rates
        squares = weights * _SQUARE_BYTES[self.machine.value_bytes] / rates.device_bytes_per_second
        if run.accumulators == "host" and self.machine.accelerator_budgets:
            squares = weights * self.machine.value_bytes / rates.link_bytes_per_second
            squares += weights * _HOST_SQUARE_BYTES / rates.host_bytes_per_second
        return flops / rates.flops_per_second + squares

    def _totals_seconds(self, run: FisherRun) -> float:
        rates, sums = self.machine.rates, _SUM_BYTES * self.shape.linear_elements
        adding = self.workload.shards * 3 * sums / rates.host_bytes_per_second
        moving = self.workload.shards * sums / rates.link_bytes_per_second if self.machine.accelerator_budgets else 0
        times_on_disk = max(_HALVES, 2 * self._sweeps(run) - _HALVES)
        if run.streamed_shards is None:
            times_on_disk = _HALVES if run.totals_in_memory else 2 * self.workload.shards - _HALVES
        return adding + moving + times_on_disk * sums / rates.disk_bytes_per_second

    @property
    def _compensation_flops(self) -> int:
        """GPTQ: two forward passes, second moments of every distinct input, their inverses, errors carried on."""
        if not self.workload.compensates:
            return 0
        tokens = self.workload.sequences * self.workload.tokens
        flops = 2 * self.workload.sequences * self._forward_flops(range(len(self.shape.blocks)))
        for block in self.shape.blocks:
            flops += sum(2 * tokens * columns**2 + 3 * columns**3 for columns in {c for _, c in block.linears})
            products = 1 + (_REFIT_PRODUCTS if self.workload.refits else 0)
            flops += products * sum(rows * columns**2 for rows, columns in block.linears)
        return flops

    def _forward_flops(self, blocks: range) -> int:
        tokens = self.workload.tokens
        linear = 2 * tokens * sum(self.shape.blocks[block].linear_elements for block in blocks)
        attention = 2 * tokens**2 * self.shape.query_width * len(blocks)
        return linear + attention + self._head_flops

    @property
    def _head_flops(self) -> int:
        return 2 * self.workload.tokens * self.shape.hidden * self.shape.vocabulary
