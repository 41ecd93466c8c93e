"""The network of a bundle's architecture without weights, checked against the names and shapes that the bundle holds.

Costs no memory: every parameter is on the meta device. The model class is the one that ``shared.architecture`` names
for the family; no code, class name or module path is ever taken from a bundle. Knows nothing about files.
"""

from __future__ import annotations

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from shared.architecture import family_of, safe_config
from shared.bundle.manifest import BundleConfig
from shared.errors import TensorMismatch, UnsupportedModel

_FOREIGN_CONFIG_ERRORS = (
    ArithmeticError, AttributeError, ImportError, LookupError, NotImplementedError, RuntimeError, StrictDataclassError,
    TypeError, ValueError,
)  # fmt: skip


def build_skeleton(config: BundleConfig) -> nn.Module:
    """Return the transformers model of the bundle's architecture on the meta device: shapes without memory.

    Raises:
        UnsupportedModel: The architecture is not served or makes no model.
        TensorMismatch: Its parameters are not those that the bundle holds.
    """
    import transformers

    fields = safe_config(config.architecture)
    family = family_of(fields)
    blocks = fields.get("num_hidden_layers")
    if not isinstance(blocks, int) or not 1 <= blocks <= len(config.tensors):
        raise UnsupportedModel(
            f"num_hidden_layers is {blocks!r}", needed=f"1 to {len(config.tensors)}, the bundle's quantised weights"
        )
    model_class = getattr(transformers, family.architecture)
    try:
        with torch.device("meta"):
            skeleton: nn.Module = model_class(model_class.config_class(**fields, attn_implementation="sdpa"))
    except _FOREIGN_CONFIG_ERRORS as error:
        raise UnsupportedModel(
            f"the bundle's architecture makes no {family.architecture}: {error}",
            needed="a configuration that the installed transformers accepts",
        ) from error
    _check_parameters(skeleton, config)
    return skeleton


def _check_parameters(skeleton: nn.Module, config: BundleConfig) -> None:
    held: dict[str, tuple[int, ...]] = {entry.name: tuple(entry.shape) for entry in config.tensors}
    held |= {entry.name: tuple(entry.shape) for entry in config.dense_parameters}
    wanted = {name: tuple(parameter.shape) for name, parameter in skeleton.named_parameters()}
    for name in sorted(set(wanted) ^ set(held)):
        fault = "is not in the bundle" if name in wanted else "is no parameter of the architecture"
        raise TensorMismatch(f"{name} {fault}", next_step="pull the bundle again, or prepare the model again")
    for name, shape in wanted.items():
        if held[name] != shape:
            raise TensorMismatch(f"{name} has shape {held[name]} in the bundle", needed=f"{shape} by the architecture")
    for entry in config.tensors:
        if not isinstance(skeleton.get_submodule(entry.name.rpartition(".")[0]), nn.Linear):
            raise UnsupportedModel(f"{entry.name} is quantised but belongs to no linear layer")
