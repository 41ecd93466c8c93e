"""One token of any text through a packed decoder's weights themselves, on a CPU: token and keys in, logits out.

What computes it reads the sensitive values where they lie: overwriting them in place does not move them, and where they
have moved it is made anew. Keeps nothing of a text. Costs one pass over the packed weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from device_client.model.backends.token_kernels import TokenKernels
from device_client.model.decoding.growing_heads import GrowingHeads
from device_client.model.decoding.stepwise import Stepwise
from device_client.model.decoding.whole_step import WholeSteps, takes_whole_steps
from device_client.model.linear import LinearRuntime


class TokenSteps:
    """Computes one token after the other.

    Args:
        decoder: A decoder that ``can_be_direct``.
        head: Hidden states to logits.
        runtime: What its packed layers share, at one point.
        kernels: The runtime's backend's.
    """

    def __init__(self, decoder: Any, head: nn.Module, runtime: LinearRuntime, kernels: TokenKernels) -> None:
        self._decoder, self._head, self._runtime = decoder, head, runtime
        is_whole = takes_whole_steps(decoder, runtime.values.of(slice(None), 0), kernels)
        self._make_steps = partial(WholeSteps if is_whole else Stepwise, kernels=kernels)
        self._values = torch.empty(0)
        self._steps: WholeSteps | Stepwise | None = None

    def take(self, token_id: int, position: int, kept: Sequence[GrowingHeads]) -> Tensor:
        """Return the logits after a token, float32 (vocabulary,).

        Args:
            token_id: The token.
            position: How many tokens the text has before it.
            kept: The text's keys and values in each block; the token's are appended.
        """
        hidden = self._decoder.embed_tokens(torch.tensor(token_id))
        cosines, sines = self._decoder.rotary_emb(hidden, torch.tensor([[position]]))
        return self._here().take(hidden, position, cosines, sines, kept).float()

    def _here(self) -> WholeSteps | Stepwise:
        """Return what reads the sensitive values where they lie now."""
        values = self._runtime.values.of(slice(None), 0)
        if self._steps is None or self._values.data_ptr() != values.data_ptr():
            self._values, self._steps = values, self._make_steps(self._decoder, self._head, values)
        return self._steps
