"""A network whose decoder blocks are read from the checkpoint when they are used, and dropped afterwards.

    model = stream_model(outline)
    with model.block(3) as block:        # its weights are read here
        ...
                                         # and are on the meta device again: they take no memory

What stands in front of the blocks and behind them (embeddings, the last norm, the output matrix) stays in memory. Every
weight is what ``load_model`` makes of it, so what is computed with a block has the same bits. Costs the trunk and one
block in the compute dtype, and reads a block's files each time it is used. Computes on the CPU. Knows nothing about
what is done with the blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from cloud_service.pipeline.model.load_model import (
    LoadedModel,
    ModelOutline,
    build_skeleton,
    place_buffers,
    place_weights,
)

_ON_THE_CPU = {"": "cpu"}


@dataclass(frozen=True, slots=True)
class StreamedModel(LoadedModel):
    """A causal language model of which one decoder block at a time is in memory.

    Attributes:
        dtype: What it computes in; None means ``compute_dtype``.
    """

    dtype: torch.dtype | None = None

    @contextmanager
    def block(self, index: int) -> Iterator[nn.Module]:
        """Yield a decoder block as the checkpoint has it; what was written into it earlier is lost.

        Raises:
            UnsupportedModel: A weight is damaged or not finite; the message names it.
        """
        names = self.outline.members(index)
        block = self.blocks[index]
        on_meta = {name: self.network.get_parameter(name) for name in names}
        try:
            place_weights(self.network, self.outline.weights, names, _ON_THE_CPU, self.dtype)
            yield block
        finally:
            for name, parameter in on_meta.items():
                path, _, leaf = name.rpartition(".")
                setattr(self.network.get_submodule(path), leaf, parameter)


def stream_model(outline: ModelOutline, *, dtype: torch.dtype | None = None) -> StreamedModel:
    """Return the model of an outline with its trunk in memory; a block is read when it is used.

    Args:
        outline: From ``read_outline``.
        dtype: What to compute in; None means ``compute_dtype`` of the CPU.

    Raises:
        UnsupportedModel: A weight of the trunk is damaged or not finite; the message names it.
    """
    network = build_skeleton(outline.architecture)
    place_weights(network, outline.weights, outline.trunk, _ON_THE_CPU, dtype)
    place_buffers(network, _ON_THE_CPU)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    return StreamedModel(network, outline, dtype)
