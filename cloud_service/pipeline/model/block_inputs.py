"""The hidden states that enter each decoder block, block after block, and the second moments of its linear inputs.

    H = 1/M · Σ x xᵀ        over the M tokens of all calibration sequences; x what enters a linear module

``capture`` runs the network once with its decoder blocks replaced by the identity: what enters the first block is kept
for every sequence, and each block's other arguments (masks, positions) once per shape, as nothing else decides them.
From there on a block is run by itself, so that the others need not be in memory, and the blocks before it may have been
quantised already, as GPTQ does it:

    inputs = capture(network, blocks, sequences)
    for block in blocks:
        moments = inputs.second_moments(block, linear_modules)     # the block in 16 bits, those before it quantised
        ...                                                        # quantise it; write what is published into it
        inputs.advance(block)
    with ending_in(blocks, inputs.hidden[0]):
        network(sequences[0])                                      # what stands behind the blocks, by itself

Costs two forward passes over the sequences, and about 0.6 · tokens · in_features² multiplications for each distinct
input of a linear module: H is symmetric, so little more than a half of it is computed. Modules that read the same
tensor share one H: q, k and v; gate and up. Memory: the hidden states in host memory, tokens · hidden_size in the
network's dtype (1 GiB for 128 · 512 tokens of a 7B model in float32), and on the block's device 4 · in_features² bytes
per distinct input (485 MB where in_features is 11,008). Sums are float32, one sequence after another, so they depend on
nothing else. Knows nothing about quantisation.
References: arXiv 2210.17323 (GPTQ).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shared.errors import UnsupportedModel

_PANEL = 384
"""Columns of H at a time; of each panel only what lies on and above the diagonal is computed, the rest mirrored."""


@dataclass(slots=True)
class BlockInputs:
    """What enters the next decoder block.

    Attributes:
        hidden: Hidden states (B, T, hidden_size) of every batch of sequences, in host memory, in the network's dtype.
        arguments: For each shape (B, T), the other arguments of every block: those without a keyword, and those with
            one.
        next_block: Index of the next block.
    """

    hidden: list[Tensor]
    arguments: dict[tuple[int, int], list[tuple[tuple[Any, ...], dict[str, Any]]]]
    next_block: int = 0

    @torch.no_grad()
    def second_moments(self, block: nn.Module, linear_modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
        """Return H of each linear module: float32 (in_features, in_features), on the module's device.

        Modules that read the same tensor get the same object.

        Args:
            block: The next block; it is run, not changed.
            linear_modules: Its linear modules, by any names.

        Raises:
            UnsupportedModel: The block makes no use of one of them.
        """
        moments = _Moments()
        with moments.observing(linear_modules):
            for hidden in self.hidden:
                with suppress(_AllSeen):
                    self.run(self.next_block, block, hidden)
                moments.end_sequence()
        return moments.means(linear_modules)

    @torch.no_grad()
    def advance(self, block: nn.Module) -> None:
        """Replace the hidden states by what the next block makes of them, and go on to the one after it."""
        for position, hidden in enumerate(self.hidden):
            self.hidden[position] = self.run(self.next_block, block, hidden).cpu()
        self.next_block += 1

    def run(self, index: int, block: nn.Module, hidden: Tensor) -> Tensor:
        """Return what a block makes of hidden states (B, T, hidden_size) of one of the shapes; changes nothing.

        Args:
            index: Which block it is.
            block: The block.
            hidden: What enters it.
        """
        device = next(block.parameters()).device
        others, keywords = self.arguments[hidden.shape[0], hidden.shape[1]][index]
        outputs: Tensor = block(hidden.to(device), *others, **keywords)
        return outputs


@torch.no_grad()
def capture(network: nn.Module, blocks: Sequence[nn.Module], sequences: Iterable[Tensor]) -> BlockInputs:
    """Return what enters the first block, for all sequences, and the other arguments of every block.

    Args:
        network: A causal language model, without dropout.
        blocks: Its decoder blocks, in order.
        sequences: Token ids (T) of each sequence, no padding; or (B, T) of each batch; or all of them as (N, T).

    Raises:
        UnsupportedModel: The network passes its blocks the hidden states by keyword.
    """
    inputs = BlockInputs([], {})
    device = network.get_input_embeddings().weight.device  # type: ignore[operator]
    with _recording(blocks, inputs):
        for sequence in sequences:
            tokens = sequence.view(-1, sequence.shape[-1]).to(device, torch.int64)
            network.base_model(input_ids=tokens, use_cache=False)  # type: ignore[operator]
    return inputs


@contextmanager
def ending_in(blocks: Sequence[nn.Module], hidden: Tensor) -> Iterator[None]:
    """Let the blocks compute nothing, and the last one return ``hidden``: the network then runs what is behind them."""

    def forward(entering: Tensor, *_: Any, **__: Any) -> Tensor:
        return entering

    with _replaced(blocks, [*[forward] * (len(blocks) - 1), lambda *_, **__: hidden]):
        yield


@contextmanager
def _recording(blocks: Sequence[nn.Module], inputs: BlockInputs) -> Iterator[None]:
    """Let every block be the identity, and write down what it is called with."""

    def identity(index: int) -> Any:
        def forward(*positional: Any, **keywords: Any) -> Tensor:
            if not positional:
                raise _unsupported("the decoder blocks are called without the hidden states in front")
            hidden: Tensor = positional[0]
            if index == 0:
                inputs.hidden.append(hidden.cpu())
            known = inputs.arguments.setdefault((hidden.shape[0], hidden.shape[1]), [])
            if len(known) == index:
                known.append((positional[1:], keywords))
            return hidden

        return forward

    with _replaced(blocks, [identity(index) for index in range(len(blocks))]):
        yield


@contextmanager
def _replaced(blocks: Sequence[nn.Module], forwards: Sequence[Any]) -> Iterator[None]:
    with ExitStack() as restored:
        for block, forward in zip(blocks, forwards, strict=True):
            restored.callback(_restore_forward, block, vars(block).get("forward"))
            block.forward = forward
        yield


def _restore_forward(block: nn.Module, before: Any) -> None:
    del block.forward  # the class's own method shows again
    if before is not None:
        block.forward = before


class _AllSeen(Exception):
    """Ends a block's run: what the last linear module makes of its input, a quarter of the work, nobody asked for."""


class _Moments:
    """Sums of x xᵀ, one per distinct input of the observed modules."""

    def __init__(self) -> None:
        self._waiting: set[str] = set()
        self._modules: frozenset[str] = frozenset()
        self._tokens: dict[str, int] = {}
        self._sums: dict[str, Tensor] = {}
        self._leaders: dict[str, str] = {}
        self._seen: list[tuple[str, Tensor]] = []

    @contextmanager
    def observing(self, modules: Mapping[str, nn.Module]) -> Iterator[None]:
        """Add up whatever enters the modules while the context is open; raise ``_AllSeen`` as the last is reached."""
        self._modules = frozenset(modules)
        self._waiting = set(modules)
        with ExitStack() as hooks:
            for name, module in modules.items():
                hooks.callback(module.register_forward_pre_hook(self._hook(name)).remove)
            yield

    def end_sequence(self) -> None:
        """Let go of the tensors by which shared inputs are recognised, and wait for all modules again."""
        self._seen.clear()
        self._waiting = set(self._modules)

    def means(self, modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
        """Return the mean over the tokens for each module."""
        if silent := [name for name in modules if name not in self._leaders]:
            raise _unsupported(f"a decoder block makes no use of its linear module {silent[0]}")
        for name, total in self._sums.items():
            total.div_(self._tokens[name]).triu_().add_(total.triu(1).T)
        return {name: self._sums[self._leaders[name]] for name in modules}

    def _hook(self, name: str) -> Any:
        def add(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            entering = arguments[0]
            leader = next((leader for leader, tensor in self._seen if tensor is entering), name)
            self._leaders[name] = leader
            if leader == name:
                self._seen.append((name, entering))
                self._add(name, entering.flatten(0, -2).to(torch.float32))
            self._waiting.discard(name)
            if not self._waiting:
                raise _AllSeen

        return add

    def _add(self, name: str, tokens: Tensor) -> None:
        if name not in self._sums:
            self._sums[name] = torch.zeros(2 * tokens.shape[1:], device=tokens.device)
        total, columns = self._sums[name], tokens.shape[1]
        for start in range(0, columns, _PANEL):
            panel = slice(start, start + _PANEL)
            total[panel, start:].addmm_(tokens[:, panel].T, tokens[:, start:])
        self._tokens[name] = self._tokens.get(name, 0) + len(tokens)


def _unsupported(found: str) -> UnsupportedModel:
    return UnsupportedModel(
        found,
        needed="blocks that take the hidden states first, and all of whose linear modules take part",
        next_step="choose quantizer.compensation none",
        param="quantizer.compensation",
    )
