"""What of a model a run tunes: three methods, each of which gives one flat vector θ its meaning.

    sparse    the sensitive values of the tuned blocks                                          k values
    lora      A (r, in) and B (out, r) of each linear weight of the tuned blocks, r = 8, α = 16   Σ r·(in + out)
    prefix    keys and values of 5 positions in front of every text, in every block             L · 5 · 2K

Ranks, α, length and ε are those of appendix C.4 ("we always add to all linear layers with r = 8 and α = 16, and for
Prefix Tuning, we always add to W_K and W_V with length as 5") and of its Table 4. The quantised weights and, but for
``sparse``, the sensitive values stay the bundle's. What θ means to a loaded model is in ``model.methods``.

Imports no torch. Knows nothing about runs or files.
Symbols: r rank · L blocks · K width of all keys of a position.
References: arXiv 2406.02913, appendix C.4; Hu et al. 2021 (LoRA); Li and Liang 2021 (prefix tuning).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from device_client.planning.tuned_blocks import ALL_BLOCKS, TunedBlocks, entries_of, tuned_blocks
from shared.bundle.config import BundleConfig
from shared.errors import InvalidRequest
from shared.model_dimensions import dimensions_of

MethodName = Literal["sparse", "lora", "prefix"]


@dataclass(frozen=True, slots=True)
class SparseValues:
    """The sensitive values themselves.

    Attributes:
        name: What an option, a run's record and its values' file call the method.
        epsilon: ε of a step where nothing else is said.
        begins_as_bundle: Whether the model answers as the bundle does until the first step.
        positions_in_front: Positions that every text has in front of it.
        is_beside_weights: Whether θ stands beside the bundle's weights, which all stay as they are.
        has_exact_gradient: Whether ``--gradient first-order`` can tune it.
    """

    name: MethodName = "sparse"
    epsilon: float = 1e-3
    begins_as_bundle: bool = True
    positions_in_front: int = 0
    is_beside_weights: bool = False
    has_exact_gradient: bool = True

    @property
    def recorded(self) -> Mapping[str, int]:
        """Return nothing: the bundle says which values are sensitive."""
        return {}


@dataclass(frozen=True, slots=True)
class LowRankFactors:
    """Two thin factors beside each linear weight: y = W x + (α/r) · B A x.

    Attributes:
        rank: r.
        alpha: α.
    """

    rank: int = 8
    alpha: int = 16
    name: MethodName = "lora"
    epsilon: float = 1e-3
    begins_as_bundle: bool = True
    positions_in_front: int = 0
    is_beside_weights: bool = True
    has_exact_gradient: bool = False

    @property
    def recorded(self) -> Mapping[str, int]:
        """Return r and α."""
        return {"rank": self.rank, "alpha": self.alpha}


@dataclass(frozen=True, slots=True)
class PrefixStates:
    """Keys and values of positions that no token stands at.

    Attributes:
        length: How many positions.
    """

    length: int = 5
    name: MethodName = "prefix"
    epsilon: float = 1e-2
    begins_as_bundle: bool = False
    is_beside_weights: bool = True
    has_exact_gradient: bool = False

    @property
    def positions_in_front(self) -> int:
        """Return the prefix's length."""
        return self.length

    @property
    def recorded(self) -> Mapping[str, int]:
        """Return the length."""
        return {"prefix_length": self.length}


Method = SparseValues | LowRankFactors | PrefixStates

METHODS: dict[MethodName, Method] = {
    method.name: method for method in (SparseValues(), LowRankFactors(), PrefixStates())
}


@dataclass(frozen=True, slots=True)
class TunedPart:
    """What a run tunes of a bundle.

    Attributes:
        method: What θ means.
        blocks: Of which decoder blocks.
        value_count: How many values θ has.
    """

    method: Method
    blocks: TunedBlocks
    value_count: int


def tuned_part(config: BundleConfig, method: MethodName = "sparse", blocks: str = ALL_BLOCKS) -> TunedPart:
    """Return what a method tunes of a bundle.

    Args:
        config: The bundle's configuration.
        method: Its name.
        blocks: ``all``, ``auto`` or ``upper:N``.

    Raises:
        InvalidRequest: The choice of blocks is malformed, or the model or the method has no such blocks.
        UnsupportedModel: Those blocks have no sensitive values, or the bundle lists its blocks in another order.
    """
    found = METHODS[method]
    chosen = tuned_blocks(config, blocks)
    if chosen.first and found.positions_in_front:
        raise InvalidRequest(
            f"--blocks {blocks} with --method {method}",
            needed="all blocks: the lowest block's keys and values change what enters every other one",
            next_step="leave --blocks out, or tune the upper blocks with --method sparse or lora",
            param="blocks",
        )
    return TunedPart(found, chosen, _value_count(found, config, chosen))


def _value_count(method: Method, config: BundleConfig, blocks: TunedBlocks) -> int:
    match method:
        case SparseValues():
            return blocks.value_count
        case LowRankFactors(rank=rank):
            return sum(rank * sum(entry.shape) for entry in entries_of(config, blocks))
        case PrefixStates(length=length):
            dimensions = dimensions_of(config.architecture)
            return dimensions.blocks * length * 2 * dimensions.keys
