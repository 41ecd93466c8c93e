"""The Fisher sums of both halves of the calibration, block by block in the workspace.

    fisher-<block>-<half>.safetensors     total over the half's shards so far, float32
        label shards                      how many
        label arithmetic                  what computed them, such as ``float32 cpu threads=2``

Shards are added in order, each block by itself: a block's file says which shard it waits for, so whatever was killed
between two blocks, no shard is counted twice and none is lost. Shards of different arithmetic differ in their last bits
and are never added: work that goes on in another arithmetic begins anew. Totals may stay in memory between shards;
they are then written as often as writing takes seconds, or at most a tenth of the time, and at the end of each half,
or when they are put away.
Costs 4 bytes per weight that is kept in memory, or one block at a time. Knows nothing about gradients.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from cloud_service.pipeline.fisher.shards import half_of, shard_count
from cloud_service.pipeline.fisher.squared_gradients import not_finite
from cloud_service.pipeline.fisher.stored_tensors import StoredTensors
from cloud_service.pipeline.workspace import Workspace

_WRITING_SHARE = 0.1
_FREE_WRITING_SECONDS = 10.0
"""So long writing may take at any rate: small models are saved after every shard."""


class FisherTotals:
    """Adds shards up and gives the diagonal.

    Args:
        workspace: Where the totals lie.
        blocks: Names of the linear weights of each decoder block.
        sequences: Number N of calibration sequences.
        keeps_in_memory: Whether totals stay in memory between shards.
    """

    def __init__(
        self, workspace: Workspace, blocks: Sequence[Sequence[str]], sequences: int, *, keeps_in_memory: bool
    ) -> None:
        self._workspace = workspace
        self._blocks = blocks
        self._sequences = sequences
        self._keeps_in_memory = keeps_in_memory
        self._kept: dict[int, dict[str, Tensor]] = {}
        stored = {block: self._stored_labels(block) for block in range(len(blocks))}
        self._next = {block: int(labels.get("shards", 0)) for block, labels in stored.items()}
        self._arithmetic = {block: labels.get("arithmetic") for block, labels in stored.items()}
        self._started = time.monotonic()
        self._writing_seconds = 0.0

    @property
    def is_complete(self) -> bool:
        """Whether every block has all shards."""
        return min(self._next.values()) == shard_count(self._sequences)

    def begun_in(self) -> set[str]:
        """Return the arithmetics of what is there, usually one; empty where nothing is."""
        return {self._arithmetic[block] or "unknown" for block, shards in self._next.items() if shards}

    def begin(self, arithmetic: str) -> None:
        """Say what will compute the missing shards; where some are missing, totals of other arithmetic are deleted.

        Raises:
            DiskError: The totals cannot be deleted.
        """
        if self.is_complete:
            return
        for block, found in self._arithmetic.items():
            if found != arithmetic and self._next[block]:
                self._kept.pop(block, None)
                for half in (1, 0):
                    self._workspace.remove_tensors(_file(block, half))
                self._next[block] = 0
            self._arithmetic[block] = arithmetic

    def next_shard(self, blocks: Sequence[int]) -> int:
        """Return the first shard that one of these blocks still waits for; S where none does."""
        return min(self._next[block] for block in blocks)

    def add(self, shard: int, block: int, sums: Mapping[str, Tensor]) -> None:
        """Add one shard's sums of a block's weights; a block that has them already is left alone.

        Args:
            shard: Its number; the block must not wait for an earlier one.
            block: The block's index.
            sums: float32 sums by weight name, on any device; not changed.

        Raises:
            DiskError: The disk is full or not writable; what was saved before is kept.
        """
        if self._next[block] > shard:
            return
        if self._next[block] < shard:
            raise ValueError(f"block {block} waits for shard {self._next[block]}, not {shard}")
        total = self._kept.pop(block, None) or self._read(block, shard)
        for name in self._blocks[block]:
            if name in total:
                total[name].add_(sums[name].cpu())
            else:
                total[name] = sums[name].to("cpu", copy=True)
        self._next[block] = shard + 1
        self._keep(block, total)

    def put_away(self, block: int) -> None:
        """Write what memory keeps of a block's total, and keep it no longer.

        Raises:
            DiskError: The disk is full or not writable.
        """
        if (total := self._kept.pop(block, None)) is not None:
            self._write(block, total)

    def halves(self) -> tuple[StoredTensors, StoredTensors]:
        """Return the sums of each half, loaded one tensor at a time; all shards must have been added.

        Raises:
            UnsupportedModel: On access: a gradient was not finite.
        """
        return self._half(0), self._half(1)

    def diagonal(self) -> StoredTensors:
        """Return F, the mean over all sequences, float32, loaded one tensor at a time.

        Raises:
            UnsupportedModel: On access: a gradient was not finite.
        """
        first, second = self.halves()
        return StoredTensors(first, lambda name: (first[name] + second[name]).div_(self._sequences))

    def _half(self, half: int) -> StoredTensors:
        owner = {name: block for block, names in enumerate(self._blocks) for name in names}

        def load(name: str) -> Tensor:
            total = self._workspace.read_tensor(_file(owner[name], half), name)
            if not torch.isfinite(total).all():
                raise not_finite(f"the gradient of {name}")
            return total

        return StoredTensors(owner, load)

    def _keep(self, block: int, total: dict[str, Tensor]) -> None:
        done = self._next[block]
        is_half_done = done == shard_count(self._sequences) or self._half_of(done) != self._half_of(done - 1)
        if not self._keeps_in_memory or is_half_done or self._is_writing_cheap():
            self._write(block, total)
        if self._keeps_in_memory and not is_half_done:
            self._kept[block] = total

    def _write(self, block: int, total: dict[str, Tensor]) -> None:
        before, done = time.monotonic(), self._next[block]
        labels = {"shards": str(done), "arithmetic": self._arithmetic[block] or "unknown"}
        self._workspace.write_tensors(_file(block, self._half_of(done - 1)), total, labels)
        self._writing_seconds += time.monotonic() - before

    def _is_writing_cheap(self) -> bool:
        elapsed = time.monotonic() - self._started
        return self._writing_seconds <= max(_FREE_WRITING_SECONDS, _WRITING_SHARE * elapsed)

    def _read(self, block: int, shard: int) -> dict[str, Tensor]:
        """Return the stored total that ``shard`` is added to; nothing where it is the first of its half."""
        if shard == 0 or self._half_of(shard) != self._half_of(shard - 1):
            return {}
        return self._workspace.read_tensors(_file(block, self._half_of(shard))) or {}

    def _stored_labels(self, block: int) -> dict[str, str]:
        for half in (1, 0):
            if (labels := self._workspace.read_labels(_file(block, half))) is not None:
                return labels
        return {}

    def _half_of(self, shard: int) -> int:
        return half_of(self._sequences, shard)


def _file(block: int, half: int) -> str:
    return f"fisher-{block:05d}-{half}"
