"""Which way of decoding a model takes where no graph is captured."""

from __future__ import annotations

from typing import Any

from torch import nn

from device_client.model.decoding.decoding import Decoding
from device_client.model.decoding.direct import DirectDecoding, can_be_direct
from device_client.model.decoding.growing import GrowingDecoding
from device_client.model.linear import LinearRuntime


def eager_decoding(
    decoder: Any, head: nn.Module, config: Any, runtime: LinearRuntime, fused_up_to_tokens: int
) -> Decoding:
    """Return what decodes step by step: directly where the backend has kernels for it, and its fused product pays.

    Args:
        decoder: A transformers decoder with packed layers.
        head: Hidden states to logits.
        config: The decoder's transformers configuration.
        runtime: What its packed layers share.
        fused_up_to_tokens: Passes of so many tokens or fewer use the backend's fused product.
    """
    kernels = runtime.backend.token_kernels
    if kernels is not None and fused_up_to_tokens > 0 and can_be_direct(decoder, config):
        return DirectDecoding(decoder, head, config, runtime, kernels)
    return GrowingDecoding(decoder, head, config, runtime.values.device)
