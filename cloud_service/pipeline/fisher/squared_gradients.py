"""Squared per-example gradients of the linear weights, summed over some calibration sequences.

    F_i = 1/N · Σ_n ( ∂L_n / ∂w_i )²        the diagonal of Equation 8

Symbols: L_n the mean loss of sequence n alone, in nats per predicted token · N sequences · w_i a weight.
Squared *per example*, then averaged: the square of a batch's gradient is another quantity. Costs one forward and one
backward pass per sequence, 4 bytes per weight asked for, and one weight's gradient: a hook squares, adds and frees
every gradient as it appears. The backward pass ends at the lowest block asked for, so groups of blocks can take turns.
Sums are float32: float16 squares underflow. Knows nothing about shards, masks or files.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from cloud_service.pipeline.calibration.sequences import Calibration
from shared.errors import ResourceError, UnsupportedModel


def zero_sums(weights: Mapping[str, Tensor], *, on_host: bool = False) -> dict[str, Tensor]:
    """Return float32 zeros shaped like the weights, beside them or in host memory."""
    return {
        name: torch.zeros(weight.shape, dtype=torch.float32, device="cpu" if on_host else weight.device)
        for name, weight in weights.items()
    }


def sum_squares(
    network: nn.Module,
    weights: Mapping[str, nn.Parameter],
    calibration: Calibration,
    rows: range,
    sums: Mapping[str, Tensor],
    *,
    recomputed_blocks: Sequence[nn.Module] = (),
    after_sequence: Callable[[], None] = lambda: None,
) -> None:
    """Add the squared gradients of the sequences ``rows`` to ``sums``, in order.

    Args:
        network: The model, without dropout.
        weights: The weights whose gradients are wanted, by name.
        calibration: The sequences.
        rows: Which of them.
        sums: float32, shaped like the weights, on any device; changed in place.
        recomputed_blocks: Blocks whose activations are not kept but computed again (gradient checkpointing): a third
            more time, the memory of one block. Changes no bit of the result.
        after_sequence: Called after each sequence, for progress; may raise to stop.

    Raises:
        UnsupportedModel: A loss is not finite.
        ResourceError: The device has too little memory.
    """
    with squared_gradients(weights, sums), _recomputed_activations(recomputed_blocks):
        for row in rows:
            try:
                finite_loss(network, calibration, row).backward()  # type: ignore[no-untyped-call]
            except torch.cuda.OutOfMemoryError as error:
                raise ResourceError(
                    f"the accelerator's memory does not hold a backward pass over {calibration.tokens.shape[1]} tokens",
                    next_step="lower calibration.tokens_per_sequence, or give a smaller max_accelerator_bytes",
                ) from error
            after_sequence()


def sequence_loss(network: nn.Module, calibration: Calibration, row: int) -> Tensor:
    """Return L_n: the mean loss of a sequence's predicted tokens, nats per token, float32 scalar."""
    start, end = int(calibration.starts[row]), int(calibration.ends[row])
    tokens = calibration.tokens[row, :end].to(next(network.parameters()).device, torch.int64)
    logits = network(input_ids=tokens[None], use_cache=False).logits[0, start - 1 : end - 1].float()
    return cross_entropy(logits, tokens[start:])


def finite_loss(network: nn.Module, calibration: Calibration, row: int) -> Tensor:
    """Return L_n, with its graph.

    Raises:
        UnsupportedModel: It is not finite.
    """
    loss = sequence_loss(network, calibration, row)
    if not torch.isfinite(loss):
        raise not_finite(f"the loss of calibration sequence {row}")
    return loss


def not_finite(what: str) -> UnsupportedModel:
    """Return the error of a number that should be finite."""
    return UnsupportedModel(
        f"{what} is not finite",
        needed="finite losses and gradients",
        next_step="check the checkpoint: its weights may be damaged",
        param="model",
    )


@contextmanager
def squared_gradients(weights: Mapping[str, nn.Parameter], sums: Mapping[str, Tensor]) -> Iterator[None]:
    """Add the square of every gradient of ``weights`` to ``sums`` as it appears, and free it, while this is open."""

    def hook(total: Tensor) -> Callable[[Tensor], None]:
        def square_and_free(weight: Tensor) -> None:
            if weight.grad is not None:
                gradient = weight.grad.to(total.device, torch.float32)
                total.addcmul_(gradient, gradient)
            weight.grad = None

        return square_and_free

    handles = []
    for name, weight in weights.items():
        weight.requires_grad_(True)
        handles.append(weight.register_post_accumulate_grad_hook(hook(sums[name])))  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for handle, weight in zip(handles, weights.values(), strict=True):
            handle.remove()
            weight.requires_grad_(False)
            weight.grad = None


@contextmanager
def _recomputed_activations(blocks: Sequence[nn.Module]) -> Iterator[None]:
    before = [vars(block).get("forward") for block in blocks]  # accelerate's hook, where there is one
    for block in blocks:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
    try:
        yield
    finally:
        for block, forward in zip(blocks, before, strict=True):
            del block.forward  # the class's own method shows again
            if forward is not None:
                block.forward = forward
