"""Where an untested family keeps its decoder blocks, and two laws that a device relies on, tried on the loaded network.

    logits = W h                  the output matrix W of the last hidden state h, and nothing after it
    logits of a token             depend on the tokens before it and on itself alone

Tested families are known to keep them, or the record of the family says what else they do. Costs two forward passes
over eight tokens. Knows nothing about checkpoints.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from shared.errors import UnsupportedModel

_TOKENS = 8
_TOLERANCE = 0.02
"""Relative to the largest logit: bfloat16 has three digits."""


def find_decoder_blocks(network: nn.Module, count: int) -> str:
    """Return the dotted path of the one list of ``count`` modules that hold linear layers.

    Raises:
        UnsupportedModel: There is none, or more than one.
    """
    found: list[str] = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == count
        and all(any(isinstance(part, nn.Linear) for part in block.modules()) for block in module)
    ]
    outermost = [name for name in found if not any(name.startswith(f"{other}.") for other in found)]
    if len(outermost) != 1:
        raise _unsupported(f"its network has {len(outermost)} lists of {count} decoder blocks")
    return outermost[0]


@torch.no_grad()
def check_computes_as_expected(network: Any) -> None:
    """Refuse a network that breaks one of the laws.

    Args:
        network: A transformers network with its weights.

    Raises:
        UnsupportedModel: It does; the message says which.
    """
    device = network.get_input_embeddings().weight.device
    tokens = torch.arange(_TOKENS, device=device)[None]
    logits = network(input_ids=tokens, use_cache=False).logits
    hidden = network.get_decoder()(input_ids=tokens, use_cache=False).last_hidden_state
    head = network.get_output_embeddings()
    if not _is_close(head(hidden.to(head.weight.device)), logits):
        raise _unsupported("its logits are not those of its output matrix: something follows it")
    other = tokens.clone()
    other[0, -1] += 1
    if not _is_close(network(input_ids=other, use_cache=False).logits[:, :-1], logits[:, :-1]):
        raise _unsupported("a token's logits depend on tokens after it")


def _is_close(found: Tensor, expected: Tensor) -> bool:
    difference = (found.to(expected.device) - expected).abs().max()
    return bool(difference <= _TOLERANCE * expected.abs().max())


def _unsupported(found: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"a model of an untested family: {found}",
        needed="a decoder that devices compute as transformers does",
        next_step="choose a model of a tested family: see the error without --allow-untested",
        param="model",
    )
