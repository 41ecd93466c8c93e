"""A forward pass that a backward pass may follow, over weights that stay packed.

    forward     blocks run without gradients; the input of each is kept, copied to one buffer (blocks, tokens, hidden)
    backward    from the last block to the first: the block runs again, now with gradients; then

                    dX = dY · W(θ)                 W decoded into the buffer that all layers share
                    dθ += dYᵀ X at the places      ``sparse_places``; a dense dW never exists

Blocks below the first that is tuned run as in any other pass and keep nothing. Norms, embeddings and the
head are not tuned; gradients only pass through them. For the length of the ``with`` block the network's modules have
another ``forward``; before and after it they are what they were. Costs a second forward pass of the tuned blocks, and
as much again for dX. Knows nothing about losses, tasks or optimisers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from device_client.model.embeddings import QuantizedHead
from device_client.model.gradient.sparse_places import add_at_places
from device_client.model.linear import QuantizedSparseLinear
from shared.errors import UnsupportedModel

Product = Callable[[Tensor], Tensor]


@contextmanager
def differentiable(network: nn.Module, blocks: Iterable[nn.Module], total: Tensor) -> Iterator[None]:
    """Let a pass inside the ``with`` block, at one point θ, add its ∂L/∂θ to ``total`` once it is differentiated.

    Args:
        network: A transformers causal language model with ``QuantizedSparseLinear`` layers.
        blocks: Its tuned decoder blocks, from the first of them to the last of all.
        total: float32 (k,), on the network's device; values of other blocks are left as they are.
    """
    anchor = torch.zeros((), device=total.device, requires_grad=True)
    tuned = list(blocks)
    inputs = _BlockInputs(len(tuned))
    with ExitStack() as restored:
        for number, block in enumerate(tuned):
            for layer in _layers(block):
                forward = partial(_forward_of_layer, layer.forward, anchor, layer, total)
                restored.enter_context(_other_forward(layer, forward))
            restored.enter_context(
                _other_forward(block, partial(_forward_of_block, block.forward, anchor, inputs, number))
            )
        for head in (module for module in network.modules() if isinstance(module, QuantizedHead)):
            restored.enter_context(_other_forward(head, partial(_forward_of_head, head.forward, head)))
        yield


@contextmanager
def _other_forward(module: nn.Module, forward: Callable[..., Tensor]) -> Iterator[None]:
    module.forward = forward
    try:
        yield
    finally:
        del module.forward  # the class's own is found again


def _layers(block: nn.Module) -> list[QuantizedSparseLinear]:
    return [module for module in block.modules() if isinstance(module, QuantizedSparseLinear)]


def _forward_of_block(
    forward: Callable[..., Any],
    anchor: Tensor,
    inputs: _BlockInputs,
    number: int,
    hidden: Tensor,
    *others: Any,
    **named: Any,
) -> Tensor:
    kept = inputs.keep(number, hidden)
    result: Tensor = _Block.apply(anchor, hidden, kept, lambda states: forward(states, *others, **named))  # type: ignore[no-untyped-call]
    return result


def _forward_of_layer(
    product: Product, anchor: Tensor, layer: QuantizedSparseLinear, total: Tensor, inputs: Tensor
) -> Tensor:
    if not torch.is_grad_enabled():
        return product(inputs)
    result: Tensor = _SparseProduct.apply(anchor, inputs, product, layer, total)  # type: ignore[no-untyped-call]
    return result


def _forward_of_head(product: Product, head: QuantizedHead, hidden: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return product(hidden)
    result: Tensor = _HeadProduct.apply(hidden, product, head)  # type: ignore[no-untyped-call]
    return result


class _BlockInputs:
    """The inputs of all tuned blocks in one buffer: between the tensors of a pass each would tear malloc's heap.

    Args:
        count: Of tuned blocks.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._buffer: Tensor | None = None

    def keep(self, number: int, hidden: Tensor) -> Tensor:
        """Return a copy of a block's input, valid until the next pass reaches that block."""
        shape = (self._count, *hidden.shape)
        if self._buffer is None or self._buffer.shape != shape:
            self._buffer = None  # freed before there is another
            self._buffer = hidden.new_empty(shape)
        kept = self._buffer[number]
        kept.copy_(hidden.detach())
        return kept


class _Block(torch.autograd.Function):
    """One decoder block, of which only the input is kept.

    The anchor has a gradient that nobody wants: it makes autograd come back to a block whose input has none.
    """

    @staticmethod
    def forward(context: Any, _anchor: Tensor, hidden: Tensor, kept: Tensor, run: Callable[[Tensor], Any]) -> Tensor:
        # Not by save_for_backward: the inputs of the blocks that follow are written to the same buffer.
        context.run, context.kept = run, kept
        result = run(hidden)
        if not isinstance(result, Tensor):
            raise UnsupportedModel(
                f"a decoder block returns {type(result).__name__}",
                needed="hidden states alone, for --gradient first-order",
                next_step="tune with --gradient zeroth-order",
            )
        return result

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[None, Tensor | None, None, None]:
        hidden = context.kept.detach().requires_grad_(context.needs_input_grad[1])
        with torch.enable_grad():
            result = context.run(hidden)
        torch.autograd.backward(result, gradients[0])
        return None, hidden.grad, None, None


class _SparseProduct(torch.autograd.Function):
    """y = x W(θ)ᵀ + b of one layer, of which only x is kept."""

    @staticmethod
    def forward(
        context: Any, _anchor: Tensor, inputs: Tensor, product: Product, layer: QuantizedSparseLinear, total: Tensor
    ) -> Tensor:
        context.layer, context.total = layer, total
        context.save_for_backward(inputs)
        return product(inputs)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[None, Tensor | None, None, None, None]:
        layer: QuantizedSparseLinear = context.layer
        (inputs,) = context.saved_tensors
        outputs = gradients[0].reshape(-1, layer.out_features)
        add_at_places(
            context.total[layer.where], outputs, inputs.reshape(-1, layer.in_features), layer.packed.positions
        )
        if not context.needs_input_grad[1]:
            return None, None, None, None, None
        through = torch.mm(outputs, layer.effective_weight())
        return None, through.view(inputs.shape), None, None, None


class _HeadProduct(torch.autograd.Function):
    """Logits of a head that stays packed; nothing is kept."""

    @staticmethod
    def forward(context: Any, hidden: Tensor, product: Product, head: QuantizedHead) -> Tensor:
        context.head = head
        return product(hidden)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return context.head.multiply_transposed(gradients[0]), None, None
