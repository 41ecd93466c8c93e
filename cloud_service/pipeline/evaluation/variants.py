"""Perplexity of a variant of the model: each block as the checkpoint has it, or rewritten as it is published.

What stands beside the blocks is rewritten first. A whole network's blocks are rewritten at once; then it is run on one
batch after another. Of a streamed one, each block is read, rewritten, run on the windows of many batches, and dropped;
the batches and their order are the same, so the sum has the same bits. Costs a forward pass over the text; streamed
also one read of the model for each ``hidden_bytes`` of hidden states. Knows nothing about what the variants are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from cloud_service.pipeline.evaluation.perplexity import LossSum, add_losses, next_batch, padded, sum_losses
from cloud_service.pipeline.model.block_inputs import capture, ending_in
from cloud_service.pipeline.model.load_model import LoadedModel
from cloud_service.pipeline.model.streamed_model import StreamedModel

_NOTHING = LossSum()


class Rewriting(Protocol):
    """A variant's own weights."""

    def write_trunk(self) -> None:
        """Write what the variant has beside the blocks into the network."""

    def write_block(self, index: int) -> None:
        """Write what the variant has in a block, whose weights are in memory."""


def sum_losses_of_variant(
    model: LoadedModel,
    windows: list[list[int]],
    start: LossSum = _NOTHING,
    *,
    rewritten: Rewriting | None = None,
    after_batch: Callable[[LossSum], None] = lambda _: None,
    subject: str = "network",
    hidden_bytes: int = 0,
) -> LossSum:
    """Return the summed loss over all windows.

    Args:
        model: The model; what is in memory stays rewritten.
        windows: From ``evaluation_windows``.
        start: Where to continue.
        rewritten: Writes what the variant has in place of the checkpoint's weights; None is the checkpoint.
        after_batch: Called after each batch, for progress and checkpoints; may raise to stop.
        subject: What the variant is, for the error.
        hidden_bytes: What the hidden states of the windows that go through a streamed network's blocks together may
            take; one batch at least goes through.

    Raises:
        UnsupportedModel: A loss is not finite; ``after_batch`` is not called.
    """
    if rewritten:
        rewritten.write_trunk()
    if not isinstance(model, StreamedModel):
        if rewritten:
            for index in range(model.outline.block_count):
                rewritten.write_block(index)
        return sum_losses(model.network, windows, start, after_batch=after_batch, subject=subject)
    done = start
    while done.windows < len(windows):
        batches = _batches_at_once(model, windows, done.windows, hidden_bytes)
        for inputs, targets, hidden in _through_the_blocks(model, batches, rewritten):
            with torch.no_grad(), ending_in(model.blocks, hidden):
                done = add_losses(done, model.network, inputs, targets, subject)
            after_batch(done)
    return done


def _batches_at_once(
    model: StreamedModel, windows: list[list[int]], start: int, hidden_bytes: int
) -> list[tuple[Tensor, Tensor]]:
    """Return inputs and targets of the next batches, at least one, whose hidden states fit."""
    embedding = model.network.get_input_embeddings().weight  # type: ignore[operator]
    per_token = embedding.shape[1] * embedding.element_size()
    batches: list[tuple[Tensor, Tensor]] = []
    while start < len(windows):
        batch = padded(next_batch(model.network, windows, start))
        hidden_bytes -= batch[0].numel() * per_token
        if batches and hidden_bytes < 0:
            break
        batches.append(batch)
        start += len(batch[0])
    return batches


def _through_the_blocks(
    model: StreamedModel, batches: list[tuple[Tensor, Tensor]], rewritten: Rewriting | None
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return the batches with the hidden states that leave the last block."""
    captured = capture(model.network, model.blocks, (inputs for inputs, _ in batches))
    for index in range(len(model.blocks)):
        with model.block(index) as block:
            if rewritten:
                rewritten.write_block(index)
            captured.advance(block)
    return [(*batch, hidden) for batch, hidden in zip(batches, captured.hidden, strict=True)]
