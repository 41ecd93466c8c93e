"""The empirical Fisher diagonal of the decoder's linear weights, one pass over the calibration sequences.

    F_i = 1/N · Σ_n ( ∂L_n / ∂w_i )²        the diagonal of Equation 8

Symbols: L_n the mean causal-LM loss of sequence n alone, in nats per predicted token · N sequences · w_i a weight.
Squared *per example*, then averaged: the square of a batch's gradient is another quantity. Costs N forward and
backward passes; 8 bytes per weight, because even and odd sequences are summed apart: F is their total, and the
overlap of the masks that each half would give (``select_sensitive``) is the mask's quality, at no further pass.
A hook squares and frees every gradient as it appears, so no more than one weight's gradient is ever held.
Float32 throughout: float16 squares underflow. Knows nothing about masks or quantisers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from shared.errors import ResourceError, UnsupportedModel

_ACTIVATION_BYTES_PER_HIDDEN = 80
_ACTIVATION_LIMIT_BYTES = 2 * 1024**3


@dataclass(slots=True)
class FisherSums:
    """Sums of squared per-example gradients, float32, shaped like the weights.

    Attributes:
        even: Sums over sequences 0, 2, 4, …
        odd: Sums over sequences 1, 3, 5, …
        count: Sequences summed so far.
    """

    even: dict[str, Tensor]
    odd: dict[str, Tensor]
    count: int = 0

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Return the sums as named tensors and labels, for a checkpoint."""
        halves = {"even": self.even, "odd": self.odd}
        tensors = {f"{half}.{name}": tensor for half, sums in halves.items() for name, tensor in sums.items()}
        return tensors, {"count": str(self.count)}

    def restore(self, tensors: dict[str, Tensor], labels: dict[str, str]) -> None:
        """Take over the sums of a checkpoint, in place."""
        for half, sums in (("even", self.even), ("odd", self.odd)):
            for name, tensor in sums.items():
                tensor.copy_(tensors[f"{half}.{name}"])
        self.count = int(labels["count"])

    def into_diagonal(self) -> dict[str, Tensor]:
        """Return F, the mean over all sequences, in the memory of ``even``; the sums are used up.

        Raises:
            UnsupportedModel: A gradient was not finite.
        """
        for name, total in self.even.items():
            total.add_(self.odd.pop(name)).div_(self.count)
            if not torch.isfinite(total).all():
                raise _not_finite(f"the gradient of {name}")
        diagonal, self.even = self.even, {}
        return diagonal


def empty_sums(weights: dict[str, nn.Parameter]) -> FisherSums:
    """Return zero sums: on the weights' device where they fit beside them, else in host memory."""
    needed = 8 * sum(weight.numel() for weight in weights.values())
    device = next(iter(weights.values())).device
    if device.type == "cuda" and torch.cuda.mem_get_info(device)[0] < 1.2 * needed + _ACTIVATION_LIMIT_BYTES:
        device = torch.device("cpu")

    def zeros() -> dict[str, Tensor]:
        return {name: torch.zeros(w.shape, dtype=torch.float32, device=device) for name, w in weights.items()}

    return FisherSums(zeros(), zeros())


def accumulate(
    network: nn.Module,
    weights: dict[str, nn.Parameter],
    sequences: Tensor,
    sums: FisherSums,
    *,
    recomputed_blocks: Sequence[nn.Module] = (),
    after_sequence: Callable[[FisherSums], None],
) -> None:
    """Add the squared gradients of the sequences from ``sums.count`` on; ``sums`` is changed in place.

    Args:
        network: The model, without dropout.
        weights: The weights whose gradients are wanted, by name.
        sequences: Token ids (N, T), no padding.
        sums: Where to go on; fresh ones from ``empty_sums``.
        recomputed_blocks: Blocks whose activations are not kept but computed again (gradient checkpointing): a third
            more time, the memory of one block.
        after_sequence: Called after each sequence, for progress and checkpoints; may raise to stop.

    Raises:
        UnsupportedModel: A loss is not finite.
        ResourceError: The device has too little memory.
    """
    device = next(iter(weights.values())).device
    with _squared_gradients(weights, sums), _recomputed_activations(recomputed_blocks):
        for sequence in sequences[sums.count :].to(torch.int64):
            try:
                _backward(network, sequence[None].to(device), sums.count)
            except torch.cuda.OutOfMemoryError as error:
                raise ResourceError(
                    f"the accelerator's memory does not hold a backward pass over {len(sequence)} tokens",
                    next_step="lower calibration.tokens_per_sequence, or use a larger accelerator",
                ) from error
            sums.count += 1
            after_sequence(sums)


def needs_recomputation(network: nn.Module, tokens: int) -> bool:
    """Whether the activations of one sequence would take more than 2 GiB."""
    config = network.config
    per_layer = tokens * int(config.hidden_size) * _ACTIVATION_BYTES_PER_HIDDEN  # type: ignore[union-attr, arg-type]
    return per_layer * int(config.num_hidden_layers) > _ACTIVATION_LIMIT_BYTES  # type: ignore[union-attr, arg-type]


def _backward(network: nn.Module, tokens: Tensor, index: int) -> None:
    logits = network(input_ids=tokens, use_cache=False).logits[0, :-1].float()
    loss = cross_entropy(logits, tokens[0, 1:])
    if not torch.isfinite(loss):
        raise _not_finite(f"the loss of calibration sequence {index}")
    loss.backward()  # type: ignore[no-untyped-call]


def _not_finite(what: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"{what} is not finite",
        needed="finite losses and gradients",
        next_step="check the checkpoint: its weights may be damaged",
        param="model",
    )


@contextmanager
def _squared_gradients(weights: dict[str, nn.Parameter], sums: FisherSums) -> Iterator[None]:
    def hook(name: str) -> Callable[[Tensor], None]:
        def square_and_free(weight: Tensor) -> None:
            half = sums.odd if sums.count % 2 else sums.even
            if weight.grad is not None:
                gradient = weight.grad.to(half[name].device, torch.float32)
                half[name].addcmul_(gradient, gradient)
            weight.grad = None

        return square_and_free

    handles = []
    for name, weight in weights.items():
        weight.requires_grad_(True)
        handles.append(weight.register_post_accumulate_grad_hook(hook(name)))  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for handle, weight in zip(handles, weights.values(), strict=True):
            handle.remove()
            weight.requires_grad_(False)
            weight.grad = None


@contextmanager
def _recomputed_activations(blocks: Sequence[nn.Module]) -> Iterator[None]:
    for block in blocks:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward  # the class's own method shows again
