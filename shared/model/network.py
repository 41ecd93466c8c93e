"""Makes transformers' own network of a family, without memory for its weights.

Weights are made on the meta device; what a network computes for itself (rotary frequencies, embedding scales) is real,
because no checkpoint holds it. Of an untested family the class is the one that transformers itself lists. No class name
or module path is ever taken from a bundle. Costs the import of transformers. Knows nothing about bundles.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from shared.model_families import ModelFamily


class _EmptyOnMeta(TorchFunctionMode):
    """Gives no memory to ``torch.empty``, by which layers make their weights."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if func is torch.empty:
            options = options | {"device": "meta"}
        return func(*args, **options)


def network_without_weights(family: ModelFamily, fields: Mapping[str, Any]) -> nn.Module:
    """Return the network that the configuration describes; its linear and embedding weights are on the meta device.

    Args:
        family: The configuration's family.
        fields: Reduced by ``safe_config``.

    Raises:
        ValueError: A value is not of the type that transformers' configuration has.
        Exception: Whatever else transformers raises where it makes no network of the configuration.
    """
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    settings = {name: value for name, value in fields.items() if name not in ("model_type", "architectures")}
    chosen = {} if family.attention is None else {"attn_implementation": family.attention}
    try:
        config = transformers.AutoConfig.for_model(family.model_type, **settings, **chosen)
    except StrictDataclassError as error:
        raise ValueError(str(error)) from error
    with _EmptyOnMeta():
        network: nn.Module = causal_class(family, config)(config)
    for path, parameter in list(network.named_parameters(remove_duplicate=False)):
        if not parameter.is_meta:
            owner, _, name = path.rpartition(".")
            setattr(network.get_submodule(owner), name, nn.Parameter(parameter.to("meta"), requires_grad=False))
    network.tie_weights()  # type: ignore[operator]
    return network


def causal_class(family: ModelFamily, config: Any) -> Any:
    """Return the class that transformers itself lists for a causal language model of its configuration ``config``.

    Raises:
        ValueError: It lists none.
    """
    import transformers

    if family.is_tested:
        return getattr(transformers, family.architecture)
    if type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError("transformers lists no causal language model of this type")
    return transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]


def is_linear(layer: nn.Module) -> bool:
    """Return whether a layer is y = x W + b, whichever way round it keeps W."""
    if isinstance(layer, nn.Linear):
        return True
    from transformers.pytorch_utils import Conv1D

    return isinstance(layer, Conv1D)


def shape_of_linear(layer: nn.Module) -> tuple[int, ...]:
    """Return (out_features, in_features) of a layer that ``is_linear``."""
    shape = tuple(layer.weight.shape)  # type: ignore[arg-type]
    return shape if isinstance(layer, nn.Linear) else shape[::-1]
