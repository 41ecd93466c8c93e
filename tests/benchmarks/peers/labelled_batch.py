"""What every peer's step is given, and the loss that each of them computes from it.

    L = −(1/n) Σ log p(answer_i | tokens up to wanted position i)        nats per answer token

The loss is float32 whatever the model computes in. Works on any transformers causal language model, plain or with
layers of this project put in. Knows nothing about how the loss is lowered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from device_client.model.token_batch import TokenBatch


@dataclass(frozen=True, slots=True)
class LabelledBatch:
    """Sequences, and the token that is right at each wanted position.

    Attributes:
        tokens: Where logits are wanted.
        answers: int64 (n,), one for each wanted position.

    Raises:
        ValueError: There are not as many answers as wanted positions.
    """

    tokens: TokenBatch
    answers: Tensor

    def __post_init__(self) -> None:
        if self.answers.shape != self.tokens.logit_rows.shape:
            raise ValueError(f"{tuple(self.answers.shape)} answers; needed {tuple(self.tokens.logit_rows.shape)}")


def random_batch(rows: int, columns: int, vocabulary: int, *, device: torch.device | str, seed: int) -> LabelledBatch:
    """Return full rows of random tokens on a device, one random answer token after each row."""
    ids = torch.randint(vocabulary, (rows, columns + 1), generator=torch.Generator().manual_seed(seed)).to(device)
    inputs, wanted = ids[:, :-1].contiguous(), torch.arange(rows, device=device)
    tokens = TokenBatch(inputs, torch.ones_like(inputs), wanted, torch.full_like(wanted, columns - 1))
    return LabelledBatch(tokens, ids[:, -1].contiguous())


def wanted_logits(network: nn.Module, tokens: TokenBatch, *, full_logits: bool = False) -> Tensor:
    """Return the logits (n, vocabulary) at the wanted positions, in the model's dtype.

    Args:
        network: A transformers causal language model.
        tokens: Right-padded rows.
        full_logits: Run ``network(input_ids, attention_mask)`` and pick from the logits of all positions, as scripts
            in the field do; else the head sees the wanted positions only, and no padding mask is made.
    """
    model: Any = network
    device = model.get_input_embeddings().weight.device
    input_ids = tokens.input_ids.to(device)
    where = (tokens.logit_rows.to(device), tokens.logit_columns.to(device))
    if full_logits:
        mask = tokens.attention_mask.to(device)
        everywhere: Tensor = model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits
        return everywhere[where]
    hidden = model.get_decoder()(input_ids=input_ids, use_cache=False).last_hidden_state
    logits: Tensor = model.get_output_embeddings()(hidden[where])
    return logits


def mean_answer_loss(network: nn.Module, batch: LabelledBatch, *, full_logits: bool = False) -> Tensor:
    """Return L, a float32 scalar on the model's device; differentiable where gradients are on."""
    logits = wanted_logits(network, batch.tokens, full_logits=full_logits)
    return functional.cross_entropy(logits.float(), batch.answers.to(logits.device))
