"""A model of which only the upper decoder blocks are tuned: what lies below them is computed once per row.

    h(row) = blocks 0 … f−1 of the row alone, at the bundle's own values        f: the first tuned block
    logits(θ) = head(blocks f … L−1 at θ, of all rows' h side by side)

A row's h is always computed from that row alone, without padding and at one point: so it is a function of bundle and
row, and the same bits whether it was kept (``kept_states``), was dropped, or is computed again after a resume, and
whatever rows it shares a micro-batch with. The upper blocks see the rows padded with zeros to the micro-batch's width,
where a causal mask lets no real position look. Where rotary frequencies depend on the longest row (dynamic, longrope),
the row's own length decides below the tuned blocks, and the micro-batch's above.

The family's own decoder runs both parts: blocks of the other part are replaced, for the time of the pass, by stand-ins
that hand hidden states on. So masks, positions and rotary frequencies are what the family makes of them.

Costs one pass over the lower blocks per row, and for each point one over the upper blocks. Knows nothing about tasks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from device_client.model.kept_states import KeptStates
from device_client.model.linear import SensitiveValues
from device_client.model.points import Point
from device_client.model.sparse_model import SparseModel
from device_client.model.token_batch import TokenBatch
from device_client.planning.tuned_blocks import TunedBlocks


class UpperBlocks:
    """The tuned blocks of a loaded model, which must stay at the bundle's own values.

    Args:
        model: As loaded.
        tuned: Its tuned blocks; some block lies below them.
        kept: Holds what lies below them from step to step.
        held_bytes: What may be held besides for the micro-batches of one step, so that all its passes use it.
    """

    def __init__(self, model: SparseModel, tuned: TunedBlocks, kept: KeptStates, *, held_bytes: int = 0) -> None:
        self._model, self._tuned, self._kept, self._held_limit = model, tuned, kept, held_bytes
        self._blocks = model.decoder_blocks
        own = self.initial_theta().to(model.compute_dtype)
        self._values = SensitiveValues(own, first=tuned.first_value)
        self._width = int(model.network.get_input_embeddings().embedding_dim)  # type: ignore[operator]
        self._held: deque[tuple[TokenBatch, Tensor]] = deque()
        self._written: list[Point] = [self.initial_theta()]

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._model.device

    @property
    def sensitive_count(self) -> int:
        """How many values are tuned."""
        return self._tuned.value_count

    def initial_theta(self) -> Tensor:
        """Return the bundle's own values of the tuned blocks, float32 (sensitive_count,), a fresh copy."""
        return self._model.initial_theta()[self._tuned.first_value :].clone()

    def write_points(self, thetas: Sequence[Point]) -> None:
        """Evaluate at every θ of ``thetas``, float32 (sensitive_count,), from now on.

        Raises:
            ValueError: Another shape or dtype.
        """
        self._values.write(thetas, self._model.runtime.backend.write_points)
        self._written = list(thetas)

    @torch.no_grad()
    def logits(self, batch: TokenBatch) -> Tensor:
        """Return the next-token logits at the wanted positions, float32 (points, n, vocabulary)."""
        entering = self._entering(batch)
        giving = _Giving(entering.repeat(self._values.points, 1, 1))
        below = {index: _Passing() for index in range(self._tuned.first - 1)} | {self._tuned.first - 1: giving}
        rows, columns, _ = giving.given.shape
        unused = entering.new_zeros(1).expand(rows, columns, self._width)
        with self._model.runtime.evaluating(self._values), _standing_in(self._blocks, below):
            hidden = self._model.decode(inputs_embeds=unused, use_cache=False)
            return self._model.wanted_logits(hidden, batch)

    @property
    def answers_alone(self) -> bool:
        """Whether ``answers`` takes one prompt at a time."""
        return self._model.answers_alone

    def answers(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[list[list[int] | None]]:
        """Return what the model writes, as ``SparseModel.answers`` does; all blocks run for every token."""
        own = self._model.initial_theta()
        whole = SensitiveValues(own.to(self._model.compute_dtype))
        below = own[: self._tuned.first_value]
        whole.write([torch.cat([below, theta[:].to(below.device)]) for theta in self._written])
        with self._model.runtime.evaluating(whole):
            return self._model.answers(prompts, new_tokens)

    def _entering(self, batch: TokenBatch) -> Tensor:
        """Return what enters the tuned blocks, compute dtype (rows, columns, hidden); zero where a row is padded."""
        for held, entering in self._held:
            if held is batch:
                return entering
        lengths = batch.attention_mask.sum(dim=1).tolist()
        states = [self._states_of(row[:length]) for row, length in zip(batch.input_ids.tolist(), lengths, strict=True)]
        entering = states[0].new_zeros(*batch.shape, states[0].shape[-1])
        for row, of_row in enumerate(states):
            entering[row, : len(of_row)] = of_row
        self._held.append((batch, entering))
        while self._held and sum(each.numel() * each.element_size() for _, each in self._held) > self._held_limit:
            self._held.popleft()
        return entering

    def _states_of(self, tokens: list[int]) -> Tensor:
        """Return a row's states (tokens, hidden), kept or computed."""
        kept = self._kept.get(tokens)
        if kept is not None:
            return kept
        taking = _Taking()
        above = {index: _Passing() for index in range(self._tuned.first + 1, self._tuned.count)}
        with _standing_in(self._blocks, above | {self._tuned.first: taking}):
            self._model.decoder(input_ids=torch.tensor([tokens], device=self.device), use_cache=False)
        self._kept.put(tokens, taking.taken[0])
        return taking.taken[0]


class _Passing(nn.Module):
    def forward(self, hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden


class _Taking(nn.Module):
    taken: Tensor

    def forward(self, hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        self.taken = hidden
        return hidden


class _Giving(nn.Module):
    def __init__(self, given: Tensor) -> None:
        super().__init__()
        self.given = given

    def forward(self, *_: Any, **__: Any) -> Tensor:
        return self.given


@contextmanager
def _standing_in(blocks: nn.ModuleList, stand_ins: Mapping[int, nn.Module]) -> Iterator[None]:
    replaced = {index: blocks[index] for index in stand_ins}
    for index, module in stand_ins.items():
        blocks[index] = module
    try:
        yield
    finally:
        for index, module in replaced.items():
            blocks[index] = module
