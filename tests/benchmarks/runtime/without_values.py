"""A weight without its sensitive values, over the same codes: what they cost is the difference between the two.

Over copies of its own, where they lie in memory would count more than the values do.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from device_client.model.backends.native.library import Described
from device_client.model.backends.native.panels import PanelProduct
from device_client.model.backends.packed_weight import PackedWeight


def without_values(weight: PackedWeight) -> PackedWeight:
    """Return the weight with no sensitive values."""
    none = {name: getattr(weight, name)[:0] for name in ("indices", "replaced") if getattr(weight, name) is not None}
    empty = replace(weight, row_starts=torch.zeros_like(weight.row_starts), **none)
    if weight.described is not None:
        empty = replace(empty, described=Described(empty))
    product = weight.at_points
    if not isinstance(product, PanelProduct):
        return empty
    return replace(empty, at_points=replace(product, placement=product.library.placement(empty)))
