"""Second moments of what enters each block's linear modules while the blocks before it are as they will be published.

    for each block    H of its inputs, behind the published blocks  →  quantise  →  write the published block, go on

GPTQ's order of work: the error that earlier blocks leave is in the inputs that later blocks are fitted to. The block
itself still holds its 16-bit weights when its inputs are measured. The network is loaded when moments are first asked
for, and is used up: all blocks before the last one measured end as in the bundle. Of a streamed network one block at a
time is in memory; each is read twice. Costs what ``block_inputs`` says, and
nothing where no moments are asked for. Knows nothing about quantisers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from cloud_service.pipeline.calibration.sequences import Calibration
from cloud_service.pipeline.fisher.select_sensitive import Masks
from cloud_service.pipeline.model.block_inputs import BlockInputs, capture
from cloud_service.pipeline.model.load_model import LoadedModel
from cloud_service.pipeline.quantizers.bundle_weights import write_dense_part, write_values
from cloud_service.pipeline.quantizers.tensor_blobs import TensorBlob
from shared.bundle.layout import ImageLayout


class PublishedInputs:
    """Goes through the blocks in order: ``second_moments`` where they are wanted, then ``advance``, once per block.

    Args:
        load: Returns the network, all of its weights as in the checkpoint; called once, or never.
        calibration: The sequences; their padding is left out.
    """

    def __init__(self, load: Callable[[], LoadedModel], calibration: Calibration) -> None:
        self._load = load
        self._calibration = calibration
        self._loaded: tuple[LoadedModel, BlockInputs] | None = None
        self._passed: list[Callable[[LoadedModel, BlockInputs], None]] = []

    def second_moments(self, block: int) -> dict[str, Tensor]:
        """Return H = E[x xᵀ] of every linear weight of the next block, float32 (in_features, in_features).

        Raises:
            UnsupportedModel: The block makes no use of one of its linear modules.
        """
        model, inputs = self._behind_the_blocks_passed()
        names = model.outline.block_linears[block]
        modules = {name: model.network.get_submodule(name.removesuffix(".weight")) for name in names}
        with model.block(block) as module:
            return inputs.second_moments(module, modules)

    def advance(
        self, block: int, layout: ImageLayout, blob: TensorBlob, masks: Masks, values: Mapping[str, Tensor]
    ) -> None:
        """Go on behind the published block; it is written and run when moments are next asked for.

        Args:
            block: The next block's index.
            layout: Where its blob lies.
            blob: Its dense part.
            masks: Masks by weight name.
            values: Its sensitive values, float16 (k,), by weight name.
        """

        def run(model: LoadedModel, inputs: BlockInputs) -> None:
            with model.block(block) as module:
                write_dense_part(model, layout, [blob])
                write_values(model, {name: (torch.from_numpy(masks[name].indices), values[name]) for name in values})
                inputs.advance(module)

        self._passed.append(run)

    def _behind_the_blocks_passed(self) -> tuple[LoadedModel, BlockInputs]:
        if self._loaded is None:
            model = self._load()
            self._loaded = model, capture(model.network, model.blocks, _without_padding(self._calibration))
        for run in self._passed:
            run(*self._loaded)
        self._passed.clear()
        return self._loaded


def _without_padding(calibration: Calibration) -> Iterator[Tensor]:
    lengths = calibration.ends.tolist()
    yield from (row[:length] for row, length in zip(calibration.tokens, lengths, strict=True))
