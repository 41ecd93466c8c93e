"""The model's likeliest continuations of several prompts, at every point θ that is written, side by side.

    prefill   prompts padded on the right, points one behind the other
    step      one more token of every row; columns of padding stay masked, and a row's positions have no gap
    end       when every row has met a stop token, its most tokens, or the context's end

Rows that have ended run along until all have: what they write then is dropped. Every point sees the same rows, padding
and kernels, and ties go to the lower token. So an answer is a function of θ, its prompt and the micro-batch. Where a
layer looks at a window of tokens, or rotary frequencies depend on the text's length, columns of padding would count:
there ``is_alone`` holds, and prompts come one by one.

Costs a pass over the prompts and one pass of a token per row for each token of the longest answer; keys and values of
all rows and points are held meanwhile. Knows nothing about tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from device_client.model.decoding.attention import steps_are_alike, switch_of, window_of

if TYPE_CHECKING:
    from device_client.model.sparse_model import SparseModel


def is_alone(config: Any) -> bool:
    """Return whether prompts of different lengths must not run side by side.

    Args:
        config: The network's transformers configuration.
    """
    return not steps_are_alike(config) or window_of(config) is not None


@torch.no_grad()
def likeliest_answers(
    model: SparseModel, prompts: Sequence[Sequence[int]], *, new_tokens: int, stop_ids: Collection[int]
) -> list[list[list[int] | None]]:
    """Return the new tokens of every prompt at every point, without stop tokens; None where logits are not finite.

    Args:
        model: Its points are already written.
        prompts: At least one, each shorter than the context; only one where ``is_alone``.
        new_tokens: At most so many are written.
        stop_ids: Tokens that end an answer.

    Returns:
        A list for each point, with an entry for each prompt.
    """
    points = model.runtime.values.points
    rows = [list(prompt) for _ in range(points) for prompt in prompts]
    context = model.tokenizer.context_length
    answers: list[list[int] | None] = [[] for _ in rows]
    most = [min(new_tokens, context - len(row)) for row in rows]
    pending = {row for row, room in enumerate(most) if room > 0}
    text = _Texts(model, rows)
    logits = text.prefill()
    while pending:
        tokens = logits.argmax(dim=1)
        chosen = torch.where(logits.isfinite().all(dim=1), tokens, -1).tolist()
        for row in sorted(pending):
            answer = answers[row]
            if chosen[row] < 0 or answer is None:
                answers[row] = None
            elif chosen[row] not in stop_ids:
                answer.append(chosen[row])
                if len(answer) < most[row]:
                    continue
            pending.discard(row)
        if pending:
            logits = text.step([max(token, 0) for token in chosen])
    return [answers[first : first + len(prompts)] for first in range(0, len(rows), len(prompts))]


class _Texts:
    """Rows of one length each, and the keys and values of what they hold so far."""

    def __init__(self, model: SparseModel, rows: list[list[int]]) -> None:
        from transformers import DynamicCache

        self._model, self._rows, self._points = model, rows, model.runtime.values.points
        self._make_cache: Callable[[], Any] = partial(DynamicCache, config=model.network.config)
        self._switch = switch_of(model.network.config)
        self._begin()

    def _begin(self) -> None:
        self._cache = self._make_cache()
        self._lengths = torch.tensor([len(row) for row in self._rows])
        self._width = int(self._lengths.max())
        self._mask = (torch.arange(self._width) < self._lengths[:, None]).long()

    def prefill(self) -> Tensor:
        """Return the logits after the last token of every row, float32 (rows, vocabulary), on the host."""
        padded = torch.tensor([row + [0] * (self._width - len(row)) for row in self._rows])
        positions = torch.arange(self._width).expand(len(self._rows), -1)
        return self._logits(padded, positions, self._lengths - 1)

    def step(self, tokens: list[int]) -> Tensor:
        """Append a token to every row and return the logits after it."""
        for row, token in zip(self._rows, tokens, strict=True):
            row.append(token)
        if len(self._rows[0]) - 1 == self._switch:  # only rows that are alone have a length of their own here
            self._begin()
            return self.prefill()
        last = self._model.tokenizer.context_length - 1
        positions = self._lengths.clamp(max=last)[:, None]
        self._lengths = self._lengths + 1
        self._mask = torch.cat([self._mask, torch.ones(len(self._rows), 1, dtype=torch.long)], dim=1)
        return self._logits(torch.tensor(tokens)[:, None], positions, torch.zeros(len(tokens), dtype=torch.long))

    def _logits(self, input_ids: Tensor, positions: Tensor, wanted: Tensor) -> Tensor:
        device = self._model.device
        hidden = self._model.decode(
            input_ids=input_ids.to(device),
            attention_mask=self._mask.to(device),
            position_ids=positions.to(device),
            past_key_values=self._cache,
            use_cache=True,
        )
        states = hidden[torch.arange(len(wanted), device=device), wanted.to(device)]
        stacked = states.view(self._points, -1, states.shape[-1])
        logits = stacked.new_empty(*stacked.shape[:2], self._model.head.vocabulary, dtype=torch.float32)
        return self._model.head.write_logits(stacked, logits).flatten(0, 1).cpu()
