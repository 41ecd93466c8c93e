"""The compiled kernels of one token: see ``TokenKernels``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from device_client.model.backends.native.library import KernelLibrary, Products
from device_client.model.backends.token_kernels import Factor, KeptHeads, SideBySide, TokenHeads


class NativeTokenKernels:
    """Computes with the compiled kernels, on a CPU.

    Args:
        library: The compiled kernels.
    """

    def __init__(self, library: KernelLibrary) -> None:
        self._library = library

    def side_by_side(self, factors: Sequence[Factor]) -> SideBySide:
        """Return products that, all in panels, prepare inputs once and share out their rows as those of one weight."""
        return _SideBySide(self._library, factors)

    def norm(self, inputs: Tensor, weight: Tensor, epsilon: float, out: Tensor) -> None:
        """Norm each row; sums in float32."""
        self._library.norm(inputs, weight, epsilon, out)

    def attend(self, heads: TokenHeads, kept: KeptHeads, scale: float) -> Tensor:
        """Attend; every head of keys is the work of one thread."""
        self._library.attend(heads, kept, scale)
        return heads.query.view(-1)


class _SideBySide:
    def __init__(self, library: KernelLibrary, factors: Sequence[Factor]) -> None:
        rows = [factor.weight.shape[0] for factor in factors]
        self._library = library
        self._outputs: tuple[Tensor, ...] = torch.split(factors[0].values.new_empty(sum(rows)), rows)
        self._products = Products(factors, self._outputs)

    def __call__(self, inputs: Tensor) -> tuple[Tensor, ...]:
        self._library.multiply(self._products, inputs)
        return self._outputs
