"""A packed weight: what a layer may ask of it, whatever the backend that packed it.

    many tokens       W = decode(codes);  W[index] = value;  y = x Wᵀ              SparseAdd, Equation 26
    few tokens        y = x decode(codes)ᵀ + x[c] (value − decoded[r, c])          SparseAddMM, Equation 24
    gradients         ∂L/∂x = ∂L/∂y · W;  ∂L/∂value_j = Σ_t ∂L/∂y[t, r_j] · x[t, c_j]       r_j, c_j from ``positions``

All weights decode to the same bits as ``shared.quantization.codec``, and those whose ``products`` are the library's
multiply with the same library calls: what is tuned or measured with ``multiply`` then does not depend on the backend.
A matrix unit sums in another order, and so does ``multiply_few``, in float32 or in whole numbers; where it rounds the
sum alone to the compute dtype, and not each weight, it is nearer to the exact product. Knows nothing about models.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from device_client.model.backends.names import Products

EVERY_ROW = slice(None)
"""The rows of a whole weight."""


class Weight(Protocol):
    """A packed weight W (out_features, in_features) with k sensitive values, on the compute device."""

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)."""

    @property
    def positions(self) -> Tensor:
        """int32 or int64 (k,), where the sensitive values stand: r · in_features + c, ascending; k may be 0."""

    @property
    def products(self) -> Products:
        """What ``multiply`` computes with; see ``names.PRODUCTS``."""

    @property
    def kept_bytes(self) -> int:
        """Bytes of all tensors that it holds; the backend's workspace is not its own."""

    def decode(self, values: Tensor | None = None, rows: slice = EVERY_ROW) -> Tensor:
        """Return W, or some rows of it, contiguous, in the compute dtype: valid until any weight is used again.

        The caller may write to the positions of the sensitive values, and nowhere else.

        Args:
            values: Compute dtype (k,), the sensitive values of the whole weight; None leaves open what stands there.
            rows: Which rows, in steps of one.

        Raises:
            ValueError: The codes cannot be read from or up to such a row.
        """

    def overwrite(self, dense: Tensor, values: Tensor, rows: slice = EVERY_ROW) -> None:
        """Write other ``values``, compute dtype (k,), to their positions in what ``decode`` returned for ``rows``."""

    def multiply(self, stacked: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        """Return x_p W(θ_p)ᵀ + b of every point, compute dtype (points, tokens, out_features).

        The bits of a point depend on that point alone.

        Args:
            stacked: Compute dtype (points, tokens, in_features).
            values: Compute dtype (points, k), each point's contiguous.
            bias: Compute dtype (out_features,), or None.

        Raises:
            TypeError: The weight is not multiplied in the dtype of the inputs.
        """

    def multiply_few(self, inputs: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        """Return x Wᵀ + b, compute dtype (…, out_features), without decoding W as a whole; for a few tokens.

        Args:
            inputs: Compute dtype (…, in_features).
            values: Compute dtype (k,).
            bias: Compute dtype (out_features,), or None.

        Raises:
            TypeError: The weight is not multiplied in the dtype of the inputs.
        """

    def decoded_bytes(self, value_bytes: int) -> int:
        """Return what keeping it decoded takes, 0 where ``multiply`` decodes nothing.

        Args:
            value_bytes: Bytes of one value in the compute dtype.
        """

    def keep_decoded(self) -> None:
        """Keep W from the next time that it is decoded with values, so that this happens once; no result changes."""
