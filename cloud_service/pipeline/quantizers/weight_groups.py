"""Which weights of a block are quantised as one, and whether its groups are quantised at the same time.

    as one              weights that read the same inputs: q, k and v; gate and up          one loop over their columns
    at the same time    the groups of a block, on a CPU                                     a loop occupies one core

Both only up to ``MOST_TOGETHER`` weights, so that scratch stays small; above it a column's work outweighs its calls,
and its products occupy all cores. Neither changes a code. Knows nothing about how weights are quantised.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import prod

import torch
from torch import Tensor

MOST_TOGETHER = 1 << 24
"""Weights that are quantised at once where that is more than one."""

_MOST_GROUPS = 4
"""q, k, v · o · gate, up · down."""


def weight_groups(
    shapes: Mapping[str, tuple[int, ...]], moments: Mapping[str, Tensor], alone: Collection[str] = ()
) -> list[list[str]]:
    """Return a block's linear weights by groups, in their order; those that share a second moment are together.

    Args:
        shapes: Shapes of the linear weights.
        moments: Second moments of their inputs, the same object for the same inputs; empty where none are needed.
        alone: Weights that are not grouped.
    """
    groups: list[list[str]] = []
    for name, shape in shapes.items():
        last = groups[-1] if groups else []
        is_alike = bool(last) and name in moments and moments[name] is moments.get(last[0])
        weights = prod(shape) + sum(prod(shapes[member]) for member in last)
        if is_alike and weights <= MOST_TOGETHER and not {name, last[0]} & set(alone):
            last.append(name)
        else:
            groups.append([name])
    return groups


def groups_at_once(shapes: Mapping[str, tuple[int, ...]], device: str) -> int:
    """Return how many groups of a block to quantise at the same time.

    Args:
        shapes: Shapes of the linear weights.
        device: Torch device to quantise on.
    """
    if torch.device(device).type != "cpu" or sum(prod(shape) for shape in shapes.values()) > MOST_TOGETHER:
        return 1
    return min(_MOST_GROUPS, torch.get_num_threads())
