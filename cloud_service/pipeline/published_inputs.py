"""Second moments of what enters each block's linear modules while the blocks before it are as they will be published.

    for each block    H of its inputs, behind the published blocks  →  quantise  →  write the published block, go on

GPTQ's order of work: the error that earlier blocks leave is in the inputs that later blocks are fitted to. The block
itself still holds its 16-bit weights when its inputs are measured. The network is used up: it ends as the bundle.
Costs what ``block_inputs`` says. Knows nothing about quantisers.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from cloud_service.pipeline.block_inputs import capture
from cloud_service.pipeline.bundle_weights import write_dense_part
from cloud_service.pipeline.calibration import Calibration
from cloud_service.pipeline.load_model import LoadedModel
from cloud_service.pipeline.publish import TensorBlob
from cloud_service.pipeline.quantize import flat_index
from cloud_service.pipeline.select_sensitive import Masks
from shared.bundle.layout import ImageLayout


class PublishedInputs:
    """Goes through the blocks in order: ``second_moments``, then ``advance``, once per block.

    Args:
        model: The network, all of its weights as in the checkpoint.
        calibration: The sequences; their padding is left out.
    """

    def __init__(self, model: LoadedModel, calibration: Calibration) -> None:
        lengths = calibration.ends.tolist()
        sequences = (row[:length] for row, length in zip(calibration.tokens, lengths, strict=True))
        self._model = model
        self._inputs = capture(model.network, model.blocks, sequences)

    def second_moments(self, block: int) -> dict[str, Tensor]:
        """Return H = E[x xᵀ] of every linear weight of the next block, float32 (in_features, in_features).

        Raises:
            UnsupportedModel: The block makes no use of one of its linear modules.
        """
        names = self._model.outline.block_linears[block]
        modules = {name: self._model.network.get_submodule(name.removesuffix(".weight")) for name in names}
        return self._inputs.second_moments(self._model.blocks[block], modules)

    def advance(
        self, block: int, layout: ImageLayout, blob: TensorBlob, masks: Masks, values: Mapping[str, Tensor]
    ) -> None:
        """Write the published block into the network and go on behind it.

        Args:
            block: The next block's index.
            layout: Where its blob lies.
            blob: Its dense part.
            masks: Masks by weight name.
            values: Its sensitive values, float16 (k,), by weight name.
        """
        write_dense_part(self._model, layout, [blob])
        parameters = self._model.parameters
        for name, sensitive in values.items():
            weight = parameters[name].data.view(-1)
            weight[flat_index(masks[name], weight.device)] = sensitive.to(weight.device, weight.dtype)
        self._inputs.advance(self._model.blocks[block])
