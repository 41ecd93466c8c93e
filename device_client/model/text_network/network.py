"""Which network reads a bundle's texts: the plain one where it serves the configuration, or transformers' own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from device_client.model.text_network.llama import LlamaForText
from device_client.model.text_network.shape import shape_of
from shared.model.network import network_without_weights
from shared.model_families import ModelFamily


def network_for_text(family: ModelFamily, fields: Mapping[str, Any]) -> nn.Module:
    """Return the network of a configuration, its weights on the meta device; see ``shared.model.skeleton``.

    Args:
        family: The configuration's family.
        fields: Reduced by ``safe_config``.
    """
    shape = shape_of(fields)
    if shape is None:
        return network_without_weights(family, fields)
    with torch.device("meta"):
        return LlamaForText(shape)
