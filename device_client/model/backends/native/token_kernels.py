"""What the compiled kernels have for a single token: side by side products, norms, attention, and the whole of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from device_client.model.backends.native.library import KernelLibrary, ProductList, WeightStruct
from device_client.model.backends.native.step import NativeStep
from device_client.model.backends.native.weight import NativeWeight
from device_client.model.backends.token_kernels import (
    BlockParts,
    DecoderParts,
    Factor,
    KeptHeads,
    SideBySide,
    TokenHeads,
)


class NativeTokenKernels:
    """Computes with the compiled kernels, on a CPU.

    Args:
        library: The compiled kernels.
    """

    def __init__(self, library: KernelLibrary) -> None:
        self._library = library

    def side_by_side(self, factors: Sequence[Factor]) -> SideBySide:
        """Return products that share what weights of one kind prepare, and are shared out by rows over all of them."""
        return _SideBySide(factors)

    def norm(self, inputs: Tensor, weight: Tensor, epsilon: float, out: Tensor) -> None:
        """Norm each row; sums in float32."""
        self._library.norm(inputs, weight, epsilon, out)

    def attend(self, heads: TokenHeads, kept: KeptHeads, scale: float) -> Tensor:
        """Attend; every head of keys is the work of one thread."""
        self._library.attend(heads, kept, scale)
        return heads.query.view(-1)

    def takes_whole_steps(self, blocks: Sequence[BlockParts], dtype: torch.dtype) -> bool:
        """Return whether it computes in float32, and these very kernels packed all weights."""
        weights = [factor.weight for block in blocks for factor in block.factors]
        return dtype == torch.float32 and all(
            isinstance(weight, NativeWeight) and weight.library is self._library for weight in weights
        )

    def whole_step(self, parts: DecoderParts) -> NativeStep:
        """Return a token's way through the blocks in one call, with as many threads as torch has at each call."""
        return NativeStep(self._library, parts)


class _SideBySide:
    def __init__(self, factors: Sequence[Factor]) -> None:
        rows = [factor.weight.shape[0] for factor in factors]
        self._outputs: tuple[Tensor, ...] = torch.split(factors[0].values.new_empty(sum(rows)), rows)
        by_library: dict[KernelLibrary, list[tuple[WeightStruct, Tensor, Tensor | None, Tensor]]] = {}
        for factor, out in zip(factors, self._outputs, strict=True):
            weight = cast(NativeWeight, factor.weight)
            product = (weight.struct(), factor.values, factor.bias, out)
            by_library.setdefault(weight.library, []).append(product)
        self._products = [(library, ProductList(products)) for library, products in by_library.items()]

    def __call__(self, inputs: Tensor) -> tuple[Tensor, ...]:
        for library, products in self._products:
            library.linear_side_by_side(products, inputs)
        return self._outputs
