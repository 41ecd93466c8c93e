"""Networks of any supported family with random weights, made on the fly, tensor by tensor, without a checkpoint.

Needs torch and transformers only, so that it also runs where accelerate is not installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from shared.architecture import family_of
from shared.model.network import network_without_weights

SEVEN_BILLION: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "max_position_embeddings": 4096,
}  # fmt: skip
"""Shapes of Llama-2-7B."""

TINY: dict[str, Any] = SEVEN_BILLION | {
    "vocab_size": 256, "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 4, "num_attention_heads": 4,
}  # fmt: skip

_SCALE = 0.02


@dataclass(frozen=True, slots=True)
class RandomNetwork:
    """A network and the names of what the Fisher pass asks for.

    Attributes:
        network: In evaluation mode; no parameter requires a gradient.
        blocks: Its decoder blocks.
        block_linears: Parameter names of every block's linear weights.
    """

    network: nn.Module
    blocks: list[nn.Module]
    block_linears: list[list[str]]

    def weights(self, group: range | tuple[int, ...]) -> dict[str, nn.Parameter]:
        """Return the linear weights of some blocks by name."""
        parameters = dict(self.network.named_parameters())
        return {name: parameters[name] for block in group for name in self.block_linears[block]}


def random_network(config: Mapping[str, Any], *, device: str, dtype: torch.dtype) -> RandomNetwork:
    """Return a network of that configuration, its weights normal with standard deviation 0.02 around 0 (norms: 1)."""
    family = family_of(dict(config))
    network = network_without_weights(family, config)
    for path, module in list(network.named_modules()):
        if isinstance(module, Conv1D):  # computes as a linear layer of the transposed weight, as it is prepared
            parent, _, child = path.rpartition(".")
            with torch.device("meta"):
                setattr(network.get_submodule(parent), child, nn.Linear(module.nx, module.nf))
    network.config.use_cache = False
    generator = torch.Generator(device).manual_seed(0)
    for name, parameter in list(network.named_parameters()):
        path, _, leaf = name.rpartition(".")
        values = torch.empty(parameter.shape, dtype=dtype, device=device).normal_(0, _SCALE, generator=generator)
        if ("norm" in name or ".ln_" in name) and leaf == "weight":
            values.add_(1)
        setattr(network.get_submodule(path), leaf, nn.Parameter(values, requires_grad=False))
    network.tie_weights()  # type: ignore[operator]
    for module in network.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    blocks = list(network.get_submodule(family.decoder_blocks).children())
    block_linears = [
        [
            f"{family.decoder_blocks}.{index}.{name}.weight"
            for name, module in block.named_modules()
            if isinstance(module, nn.Linear)
        ]
        for index, block in enumerate(blocks)
    ]
    return RandomNetwork(network.eval(), blocks, block_linears)
