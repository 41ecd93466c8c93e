"""Where a decoder keeps the keys and values of a text that grows."""

from __future__ import annotations

from typing import Any

from device_client.model.text_network.keys import LayerKeys
from device_client.model.text_network.llama import LlamaDecoder


def empty_cache(decoder: Any, config: Any = None) -> Any:
    """Return keys and values of no token, of the kind that the decoder extends.

    Args:
        decoder: A transformers decoder, or the plain one.
        config: The transformers configuration, so that a layer with a window forgets what lies before it; None keeps
            all tokens. The plain decoder always keeps all.
    """
    if isinstance(decoder, LlamaDecoder):
        return decoder.empty_cache()
    from transformers import DynamicCache

    return DynamicCache(config=config)


def forget(layer: Any) -> None:
    """Give back the memory of one layer's keys and values."""
    if isinstance(layer, LayerKeys):
        layer.drop()
    else:
        layer.keys = layer.values = None
