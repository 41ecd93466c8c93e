"""The limits a step and a decoder are held against: two bare forward passes, and transformers' own ``generate``.

A bare forward pass is the decoder of a plain 16-bit model without gradients, and the head at the wanted positions:
no loss, no perturbation, no decoding of weights, nothing read back to the host. A zeroth-order step that multiplies as
the library does cannot cost less than two of them; one that reads 4-bit codes once for both signs can.
Knows nothing about timing a step: the caller does that.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from peers.labelled_batch import wanted_logits
from torch import Tensor, nn

from device_client.model.token_batch import TokenBatch


@torch.no_grad()
def two_bare_forwards(network: nn.Module, tokens: TokenBatch) -> tuple[Tensor, Tensor]:
    """Return the logits (n, vocabulary) at the wanted positions, computed twice; on CUDA they may still be computing.

    Args:
        network: A plain transformers causal language model.
        tokens: Best on the model's device already.
    """
    return wanted_logits(network, tokens), wanted_logits(network, tokens)


@dataclass(frozen=True, slots=True)
class Generation:
    """What was generated, and how long it took.

    Attributes:
        tokens: The new tokens.
        seconds: From the call to the last token, the prompt's forward pass included.
    """

    tokens: list[int]
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """New tokens per second; with a short prompt this is the speed of decoding."""
        return len(self.tokens) / self.seconds


def greedy_generate(network: nn.Module, prompt_ids: list[int], new_tokens: int) -> Generation:
    """Return exactly so many likeliest tokens after a prompt, by transformers' ``generate`` with its default cache.

    Args:
        network: A plain transformers causal language model with ``generate``.
        prompt_ids: At least one token.
        new_tokens: How many; the end-of-text token is held back until then.
    """
    model: Any = network
    input_ids = torch.tensor([prompt_ids], device=model.get_input_embeddings().weight.device)
    begin = time.perf_counter()
    output: Tensor = model.generate(
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        min_new_tokens=new_tokens,
        max_new_tokens=new_tokens,
        do_sample=False,
        use_cache=True,
        pad_token_id=0,
    )
    tokens = output[0, len(prompt_ids) :].tolist()  # waits for the device
    return Generation(tokens, time.perf_counter() - begin)
