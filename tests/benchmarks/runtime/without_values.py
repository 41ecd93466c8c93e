"""A weight without its sensitive values, over the same codes: what they cost is the difference between the two.

Over copies of its own, where they lie in memory would count more than the values do.
"""

from __future__ import annotations

import copy

import torch

from device_client.model.backends.native.amx.backend import AmxWeight
from device_client.model.backends.native.backend import NativeWeight
from device_client.model.backends.packed_weight import PackedWeight


def without_values(weight: PackedWeight) -> PackedWeight:
    """Return the weight with no sensitive values."""
    empty = copy.copy(weight)
    empty.positions, empty.row_starts = weight.positions[:0], torch.zeros_like(weight.row_starts)
    if isinstance(empty, NativeWeight):
        empty.replaced, empty._structs = None, {}
    if isinstance(empty, AmxWeight):
        empty.place_values()
    return empty
