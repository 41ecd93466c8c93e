"""Squared per-example gradients with one decoder block in memory at a time: for networks larger than the memory.

    for some shards at once                 as many as the hidden states of memory allow
        for each block, first to last       read it, run it on every sequence, keep what entered it, drop it
        for each sequence                   norm, head and loss; the gradient of what left the last block
        for each block, last to first       read it again; for each sequence compute it again and go back through it:
                                            its weights' gradients are squared and added, its input's is kept

A block is differentiated by the same operations on the same values as inside the whole network, sequence by sequence
and in the order of the shards, so the sums have the same bits. Costs two reads of the model for each group of shards,
and a third more computing than with kept activations. Memory: the trunk, a block, its sums and totals, and the hidden
states of the group in front of every block: sequences · tokens · hidden · blocks values (2 GiB for 8 · 512 tokens of a
7B model in float32). Knows nothing about how many shards there should be.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from cloud_service.pipeline.calibration.sequences import Calibration
from cloud_service.pipeline.fisher.shards import shard_count, shard_rows
from cloud_service.pipeline.fisher.squared_gradients import finite_loss, squared_gradients, zero_sums
from cloud_service.pipeline.fisher.totals import FisherTotals
from cloud_service.pipeline.model.block_inputs import BlockInputs, capture, ending_in
from cloud_service.pipeline.model.load_model import LoadedModel

_FORWARD_SHARE = 0.25
"""Of the time of a group of shards: a forward pass costs a third of computing again, and going back."""


def estimate_by_block(
    model: LoadedModel,
    calibration: Calibration,
    totals: FisherTotals,
    shards_at_once: int,
    *,
    after_sequence: Callable[[int], None],
) -> None:
    """Add all shards that are missing to the totals.

    Args:
        model: The model; only ``model.block`` is relied on to hold a block's weights.
        calibration: The sequences.
        totals: Where to continue. They may keep totals in memory: those of one block at a time.
        shards_at_once: How many shards go through the blocks together; changes no bit.
        after_sequence: Called with the number of sequences done, of unfinished groups in proportion; may raise to stop.

    Raises:
        UnsupportedModel: A weight or a loss is not finite.
        DiskError: The totals cannot be saved.
    """
    count = shard_count(len(calibration))
    first = totals.next_shard(range(len(model.blocks)))
    after_sequence(shard_rows(len(calibration), first).start)
    for start in range(first, count, shards_at_once):
        shards = range(start, min(start + shards_at_once, count))
        _Sweep(model, calibration, shards, after_sequence).add_to(totals)


class _Sweep:
    """One way there and back through the blocks, for the sequences of some shards."""

    def __init__(
        self, model: LoadedModel, calibration: Calibration, shards: range, after_sequence: Callable[[int], None]
    ) -> None:
        self._model = model
        self._calibration = calibration
        self._rows = {shard: shard_rows(len(calibration), shard) for shard in shards}
        self._first = self._rows[shards[0]].start
        self._count = self._rows[shards[-1]].stop - self._first
        self._after_sequence = after_sequence

    def add_to(self, totals: FisherTotals) -> None:
        """Add the squares of every block's gradients to its totals, shard by shard."""
        inputs, entering = self._forward()
        gradients = [self._gradient_behind_the_blocks(self._first + at, left) for at, left in enumerate(inputs.hidden)]
        inputs.hidden.clear()
        for index in reversed(range(len(entering))):
            with self._model.block(index) as block:
                self._backward(index, block, inputs, entering.pop(), gradients, totals)
            totals.put_away(index)

    def _forward(self) -> tuple[BlockInputs, list[list[Tensor]]]:
        """Return what left the last block, and what entered every block, for each sequence."""
        model, calibration = self._model, self._calibration
        rows = range(self._first, self._first + self._count)
        inputs = capture(model.network, model.blocks, (calibration.tokens[r, : int(calibration.ends[r])] for r in rows))
        entering = []
        for index in range(len(model.blocks)):
            entering.append(list(inputs.hidden))
            with model.block(index) as block:
                inputs.advance(block)
            self._tell(_FORWARD_SHARE * (index + 1) / len(model.blocks))
        return inputs, entering

    def _gradient_behind_the_blocks(self, row: int, left: Tensor) -> Tensor:
        leaf = left.detach().requires_grad_(True)
        with ending_in(self._model.blocks, leaf):
            finite_loss(self._model.network, self._calibration, row).backward()  # type: ignore[no-untyped-call]
        return _gradient_of(leaf)

    def _backward(
        self,
        index: int,
        block: nn.Module,
        inputs: BlockInputs,
        entering: list[Tensor],
        gradients: list[Tensor],
        totals: FisherTotals,
    ) -> None:
        """Add a block's squares to its totals; replace the gradients of its outputs by those of its inputs."""
        parameters = self._model.parameters
        weights = {name: parameters[name] for name in self._model.outline.block_linears[index]}
        sums = zero_sums(weights)
        behind = len(self._model.blocks) - 1 - index
        for shard, rows in self._rows.items():
            for total in sums.values():
                total.zero_()
            with squared_gradients(weights, sums):
                for at in range(rows.start - self._first, rows.stop - self._first):
                    leaf = entering[at].detach().requires_grad_(index > 0)
                    torch.autograd.backward(inputs.run(index, block, leaf), gradients[at])
                    if index > 0:
                        gradients[at] = _gradient_of(leaf)
                    done = (behind + (at + 1) / self._count) / len(self._model.blocks)
                    self._tell(_FORWARD_SHARE + (1 - _FORWARD_SHARE) * done)
            totals.add(shard, index, sums)

    def _tell(self, share: float) -> None:
        self._after_sequence(self._first + int(share * self._count + 1e-9))


def _gradient_of(leaf: Tensor) -> Tensor:
    if leaf.grad is None:
        raise ValueError("the network makes no use of what its decoder blocks return")
    return leaf.grad
