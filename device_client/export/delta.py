"""A run's values alone, in one safetensors file, for programs that have the bundle.

    <weight>.values          float32 (k of the weight,), in the order of the bundle's indices          method sparse
    <weight>.lora_A, .lora_B float32 (r, in), (out, r):  W + (α/r) · B A                               method lora
    theta                    float32 (k,): keys and values, as ``device_client.model.prefix`` says     method prefix

The values are exact: 4 bytes each. The metadata names the bundle by its digest, which fixes the indices; values without
that very bundle mean nothing. Costs the file in memory.
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from device_client.export.model_card import model_card
from device_client.export.subject import Subject, TunedRun
from device_client.export.weights import low_rank_factors, values_by_weight
from device_client.planning.methods import LowRankFactors, PrefixStates

DELTA_NAME = "delta.safetensors"
FORMAT = "zo-device delta 1"


def write_delta(folder: Path, subject: Subject) -> None:
    """Write ``delta.safetensors`` and README.md into an empty folder."""
    tuned = subject.needed_run()
    method = tuned.part.method
    metadata = {
        "format": FORMAT,
        "bundle": subject.bundle.digest,
        "base_model": subject.bundle.config.source.id,
        "method": method.name,
        "blocks": tuned.part.blocks.name,
        **{key: str(number) for key, number in method.recorded.items()},
    }
    save_file(_tensors(subject, tuned), folder / DELTA_NAME, metadata=metadata)
    card = model_card(subject, f"The tuned values alone ({DELTA_NAME}, float32)")
    (folder / "README.md").write_text(card, encoding="utf-8")


def _tensors(subject: Subject, tuned: TunedRun) -> dict[str, Tensor]:
    match tuned.part.method:
        case LowRankFactors():
            factors = low_rank_factors(tuned, subject)
            return {
                f"{name}.{part}": tensor.contiguous()
                for name, pair in factors
                for part, tensor in zip(("lora_A", "lora_B"), pair, strict=True)
            }
        case PrefixStates():
            return {"theta": tuned.theta}
        case _:
            values = values_by_weight(tuned, subject)
            return {f"{name}.values": tensor.contiguous() for name, tensor in values if len(tensor)}
