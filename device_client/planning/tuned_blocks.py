"""Which decoder blocks are tuned, and which part of θ that is.

    all        every sensitive value
    upper:N    those of the last N blocks           θ is then the tail of the bundle's θ
    auto       upper:N, N a third of the blocks, rounded up

What lies below the first tuned block never changes, so it is computed once per row; see ``model.upper_blocks``. A
third, because rows agree most on the gradients of the upper blocks: the share of a gradient that they agree on is 0.25
in the last ten of SmolLM2's thirty blocks, 0.15 over all and 0.04 in the first ten (SST-2; AG News, TREC and CB alike).
Imports no torch. Knows nothing about runs.
"""

from __future__ import annotations

from dataclasses import dataclass

from shared.bundle.config import BundleConfig, QuantizedEntry
from shared.bundle.manifest import block_title
from shared.errors import InvalidRequest, UnsupportedModel
from shared.model_dimensions import dimensions_of

ALL_BLOCKS = "all"
STATES_FILE_BYTES = 4 << 30
"""What a file of hidden states below the tuned blocks may take of the disk where nothing else is said."""

_AUTO, _UPPER = "auto", "upper:"
_MOST_DIGITS = 9


@dataclass(frozen=True, slots=True)
class TunedBlocks:
    """The tuned part of a bundle.

    Attributes:
        first: Index of the first tuned block; 0 tunes all of them.
        count: Blocks of the model.
        first_value: Where the tuned values begin in the bundle's θ.
        value_count: How many values are tuned.
    """

    first: int
    count: int
    first_value: int
    value_count: int

    @property
    def name(self) -> str:
        """What an option, a run's record and its journal call it."""
        return f"{_UPPER}{self.count - self.first}" if self.first else ALL_BLOCKS


def check_blocks(text: str) -> str:
    """Return a choice of blocks as it was given.

    Raises:
        InvalidRequest: It is not ``all``, ``auto`` or ``upper:N`` with N ≥ 1.
    """
    if text not in (ALL_BLOCKS, _AUTO) and _upper_count(text) < 1:
        raise InvalidRequest(
            f"--blocks {text}",
            needed="all, auto, or upper:N with N from 1 on, such as upper:10",
            next_step="zo-device tune --help",
            param="blocks",
        )
    return text


def tuned_blocks(config: BundleConfig, text: str = ALL_BLOCKS) -> TunedBlocks:
    """Return the part of a bundle that a choice of blocks tunes.

    Args:
        config: The bundle's configuration.
        text: ``all``, ``auto`` or ``upper:N``.

    Raises:
        InvalidRequest: The choice is malformed, or the model has fewer blocks.
        UnsupportedModel: Those blocks have no sensitive values, or the bundle lists its blocks in another order.
    """
    check_blocks(text)
    if text == ALL_BLOCKS:
        return TunedBlocks(0, dimensions_of(config.architecture).blocks, 0, config.sensitive_count)
    count = dimensions_of(config.architecture).blocks
    upper = -(-count // 3) if text == _AUTO else _upper_count(text)
    if upper > count:
        raise InvalidRequest(
            f"--blocks {text}, but {config.source.id} has {count} blocks",
            needed=f"upper:1 to upper:{count}, all or auto",
            param="blocks",
        )
    first = count - upper
    below, tuned = _split(config, first)
    value_count = sum(entry.sensitive_count for entry in tuned)
    if value_count == 0:
        raise UnsupportedModel(
            f"the last {upper} blocks of {config.source.id} have no sensitive values: there is nothing to tune",
            needed="blocks with at least one sensitive value",
            next_step="--blocks all, or an upper:N with more blocks",
            param="blocks",
        )
    return TunedBlocks(first, count, sum(entry.sensitive_count for entry in below), value_count)


def entries_of(config: BundleConfig, blocks: TunedBlocks) -> list[QuantizedEntry]:
    """Return the linear weights of the tuned blocks, in the order of θ."""
    return _split(config, blocks.first)[1]


def _upper_count(text: str) -> int:
    """Return N of ``upper:N``, or 0 where the text is something else."""
    number = text.removeprefix(_UPPER)
    is_number = text.startswith(_UPPER) and number.isascii() and number.isdecimal() and len(number) <= _MOST_DIGITS
    return int(number) if is_number else 0


def _split(config: BundleConfig, first: int) -> tuple[list[QuantizedEntry], list[QuantizedEntry]]:
    titles_below = {block_title(index) for index in range(first)}
    is_below = [entry.blob in titles_below for entry in config.block_tensors]
    place = is_below.index(False) if False in is_below else len(is_below)
    if any(is_below[place:]):
        raise UnsupportedModel(
            f"{config.source.id} lists weights of lower blocks behind those of upper blocks",
            needed="weights in the order of their blocks",
            next_step="--blocks all, or prepare the model again",
            param="blocks",
        )
    return config.block_tensors[:place], config.block_tensors[place:]
