"""What a preparation or a study is asked to work on, as it is named: nothing is opened or looked up yet.

All that results depend on is here, and all that a memory plan needs; where to publish is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shared.api import CalibrationSpec, EvaluationSpec, PrepareRequest, QuantizerSpec

_SETTINGS_OF_A_PREPARATION = {"sparsity", "scope", "mask_source", "quantizer"}


@dataclass(frozen=True, slots=True)
class NamedInput:
    """A model, its texts and what is done with them.

    Attributes:
        model: Hub id, a folder or a GGUF file.
        revision: Hub revision; None means the default branch.
        calibration: Text or task rows of the Fisher pass.
        evaluation: Text of the perplexities.
        settings: What checkpoints and results depend on besides model and texts; JSON-ready.
        sparsity: Share of sensitive weights, for the plan; 0 stores none.
        quantizer: The quantiser, of several the one that needs the most memory; None quantises nothing.
        needs_whole_network: Whether something is done with the network that cannot be done block by block.
        allow_untested: Whether the model's family may be one that nobody tests.
        gguf_file: Name of the GGUF file in the folder or repository; None where ``model`` says it all.
    """

    model: str
    revision: str | None
    calibration: CalibrationSpec
    evaluation: EvaluationSpec
    settings: Mapping[str, Any]
    sparsity: float = 0.0
    quantizer: QuantizerSpec | None = None
    needs_whole_network: bool = False
    allow_untested: bool = False
    gguf_file: str | None = None

    @classmethod
    def of_preparation(cls, request: PrepareRequest) -> NamedInput:
        """Return the input that a request for a bundle names."""
        settings = request.model_dump(mode="json", include=_SETTINGS_OF_A_PREPARATION)
        if request.embedding_bits != 16:  # 16 counts as no setting: what was prepared before there was one is found
            settings["embedding_bits"] = request.embedding_bits
        return cls(
            model=request.model,
            revision=request.revision,
            calibration=request.calibration,
            evaluation=request.evaluation,
            settings=settings,
            sparsity=request.sparsity,
            allow_untested=request.allow_untested,
            quantizer=request.quantizer,
            gguf_file=request.gguf_file,
        )
