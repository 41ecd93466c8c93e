"""The gradient of a weight at its sensitive places alone.

    dθ_p = Σ_t dY[t, i_p] · X[t, j_p]          for the places p = (i_p, j_p) of one weight, in float32

The dense gradient dYᵀ X would be as large as the weight; what is wanted of it is a thousandth. Tokens go a tile at a
time, turned so that a place reads two rows that lie side by side; places go a portion at a time. Beside the sums this
holds (in + out) × 128 values of the compute dtype and four portions of 1 Mi float32 at most: nothing grows with
k × tokens. Costs 2 k × tokens reads. Knows nothing about layers or models.
"""

from __future__ import annotations

from torch import Tensor

from device_client.model.gradient.bounds import PLACES_AT_ONCE, TOKENS_AT_ONCE


def add_at_places(total: Tensor, outputs: Tensor, inputs: Tensor, places: Tensor) -> None:
    """Add a weight's gradient at its sensitive places to ``total``.

    Args:
        total: float32 (k,), changed in place.
        outputs: dY, compute dtype (tokens, out_features).
        inputs: X, compute dtype (tokens, in_features).
        places: int32 or int64 (k,), flat positions in the weight (out_features, in_features).
    """
    columns = inputs.shape[1]
    rows_of = places.div(columns, rounding_mode="floor")
    columns_of = places - rows_of * columns
    for first in range(0, len(inputs), TOKENS_AT_ONCE):
        tile = slice(first, first + TOKENS_AT_ONCE)
        turned_outputs, turned_inputs = (tensor[tile].T.contiguous() for tensor in (outputs, inputs))
        for begin in range(0, len(places), PLACES_AT_ONCE):
            part = slice(begin, begin + PLACES_AT_ONCE)
            products = turned_outputs[rows_of[part]].float().mul_(turned_inputs[columns_of[part]].float())
            total[part] += products.sum(dim=1)
