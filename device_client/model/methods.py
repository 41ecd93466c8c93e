"""A loaded model as its method tunes it: what one flat vector θ means to the network.

    sparse    values of packed weights            sparse_model, upper_blocks
    lora      low-rank factors beside them        low_rank
    prefix    keys and values in front of texts   prefix

The one place that chooses. Costs nothing but what the method keeps.
"""

from __future__ import annotations

from device_client.model.linear import QuantizedSparseLinear
from device_client.model.low_rank import LowRankModel
from device_client.model.prefix import PrefixedModel
from device_client.model.sparse_model import SparseModel
from device_client.model.tunable_model import TunableModel
from device_client.planning.methods import LowRankFactors, PrefixStates, SparseValues, TunedPart
from device_client.planning.tuned_blocks import entries_of


def tuned_by(part: TunedPart, model: SparseModel, base: TunableModel, *, seed: int = 0) -> TunableModel:
    """Return what a run tunes; what it adds to the network stays there.

    Args:
        part: What of the model.
        model: Loaded.
        base: The model itself, or its upper blocks over the hidden states that enter them.
        seed: Of what θ begins with, where it is drawn.
    """
    match part.method:
        case LowRankFactors(rank=rank, alpha=alpha):
            linears = [_linear_of(model, entry.name) for entry in entries_of(model.config, part.blocks)]
            return LowRankModel(base, linears, model.compute_dtype, rank=rank, alpha=alpha, seed=seed)
        case PrefixStates(length=length):
            return PrefixedModel(model, length=length, seed=seed)
        case SparseValues():
            return base


def _linear_of(model: SparseModel, name: str) -> QuantizedSparseLinear:
    found = model.network.get_submodule(name.removesuffix(".weight"))
    if not isinstance(found, QuantizedSparseLinear):
        raise TypeError(f"{name} is not packed")
    return found
