"""The network of a bundle's architecture without weights, checked against the names and shapes that the bundle holds.

Costs no memory: every parameter is on the meta device. Knows nothing about files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from shared.architecture import family_of, safe_config
from shared.bundle.config import BundleConfig
from shared.errors import TensorMismatch, UnsupportedModel
from shared.model.network import is_linear, network_without_weights, shape_of_linear
from shared.model_dimensions import dimensions_of
from shared.model_families import ModelFamily

MakeNetwork = Callable[[ModelFamily, Mapping[str, Any]], nn.Module]
"""Makes the network of a family's configuration, its weights on the meta device."""

_FOREIGN_CONFIG_ERRORS = (
    ArithmeticError, AttributeError, ImportError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError,
)  # fmt: skip


def build_skeleton(config: BundleConfig, make_network: MakeNetwork = network_without_weights) -> nn.Module:
    """Return the network of the bundle's architecture on the meta device: shapes without memory.

    Args:
        config: The bundle's.
        make_network: Makes transformers' network, or one whose parameters have the same names.

    Raises:
        UnsupportedModel: The architecture is not served or makes no model.
        TensorMismatch: Its parameters are not those that the bundle holds.
    """
    fields = safe_config(config.architecture, allow_untested=config.is_untested_family)
    family = family_of(fields, allow_untested=True)
    blocks = dimensions_of(fields).blocks
    if blocks > (most := len(config.block_tensors)):
        raise UnsupportedModel(
            f"{blocks} decoder blocks in the architecture",
            needed=f"1 to {most}, the quantised weights of the bundle's blocks",
        )
    try:
        skeleton = make_network(family, fields)
    except _FOREIGN_CONFIG_ERRORS as error:
        raise UnsupportedModel(
            f"the bundle's architecture makes no {family.architecture or family.model_type}: {error}",
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
    for entry in config.block_tensors:
        layer = skeleton.get_submodule(entry.name.rpartition(".")[0])
        if not is_linear(layer):
            raise UnsupportedModel(f"{entry.name} is quantised but belongs to no linear layer")
        wanted[entry.name] = shape_of_linear(layer)
    for name, shape in wanted.items():
        if held[name] != shape:
            raise TensorMismatch(f"{name} has shape {held[name]} in the bundle", needed=f"{shape} by the architecture")
    ends = (skeleton.get_input_embeddings(), skeleton.get_output_embeddings())  # type: ignore[operator]
    for entry in config.embedding_tensors:
        if skeleton.get_submodule(entry.name.rpartition(".")[0]) not in ends:
            raise UnsupportedModel(f"{entry.name} is quantised in the trunk but is neither embedding nor head")
