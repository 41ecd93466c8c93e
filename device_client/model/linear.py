"""A linear layer whose weight stays packed: 4-bit codes, and 16- or 32-bit sensitive values written over them.

    W[r, c] = dequantise(codes)[r, c];  W[index] = value;  y = x Wᵀ + b       (Equation 26, replace semantics)

The weight exists only while the layer computes. Where the loss is wanted at several points θ (both signs of a step,
all its queries), their inputs come stacked:

    y_p = x_p W(θ_p)ᵀ + b          for p = 1 … points, with the bits that each point has alone

How a product is made is the weight's own affair; the layer decides one thing: whether the tokens of a single point are
few enough for the product that does not decode W as a whole (Equation 24). What a method adds to the product, such as
low-rank factors, comes after either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from device_client.model.backends.backend import LinearBackend
from device_client.model.backends.weight import Weight
from device_client.model.points import Point, WritePoints, write_points

Addition = Callable[[Tensor, Tensor], None]
"""(inputs, outputs), as ``QuantizedSparseLinear.forward`` takes and returns them: adds to the outputs in place."""


class SensitiveValues:
    """The sensitive values of layers at every point that is being evaluated, in the compute dtype.

    Args:
        initial: Compute dtype (k,), the bundle's values, on the compute device.
        first: Where they begin in the bundle's θ: 0, or where the values of the tuned blocks begin.
    """

    def __init__(self, initial: Tensor, first: int = 0) -> None:
        self._by_point = initial[None]
        self._first = first

    @property
    def points(self) -> int:
        """How many θ are evaluated side by side."""
        return self._by_point.shape[0]

    @property
    def count(self) -> int:
        """k: values of one θ."""
        return self._by_point.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """The compute dtype."""
        return self._by_point.dtype

    @property
    def device(self) -> torch.device:
        """The compute device."""
        return self._by_point.device

    def write(self, thetas: Sequence[Point], write: WritePoints = write_points) -> None:
        """Take the values of every θ, each rounded once to the compute dtype; in place where they fit.

        Args:
            thetas: At least one, float32 (k,) each.
            write: Writes them.

        Raises:
            ValueError: Another shape or dtype; nothing was written.
        """
        for theta in thetas:
            if theta.shape != (self.count,) or theta.dtype != torch.float32:
                raise ValueError(f"theta is {theta.dtype} {tuple(theta.shape)}; needed float32 ({self.count},)")
        if len(thetas) != self.points:
            self._by_point = torch.empty(len(thetas), self.count, dtype=self.dtype, device=self.device)
        write(thetas, self._by_point)

    def of(self, where: slice, point: int) -> Tensor:
        """Return one layer's values at one point, compute dtype (k of the layer,), a view."""
        return self._by_point[point, self._place(where)]

    def of_layer(self, where: slice) -> Tensor:
        """Return one layer's values at every point, compute dtype (points, k of the layer), a view."""
        return self._by_point[:, self._place(where)]

    def _place(self, where: slice) -> slice:
        begin, end, _ = where.indices(self._first + self.count)
        return slice(max(0, begin - self._first), max(0, end - self._first))


class LinearRuntime:
    """What all layers of a model share.

    Attributes:
        backend: Packed the weights.
        values: The sensitive values.
        fused_up_to_tokens: Passes of so many tokens or fewer use ``Weight.multiply_few``; 0 never does.
    """

    def __init__(self, backend: LinearBackend, values: SensitiveValues) -> None:
        self.backend = backend
        self.values = values
        self.fused_up_to_tokens = 0

    @contextmanager
    def evaluating(self, values: SensitiveValues) -> Iterator[None]:
        """Compute with other values, at as many points as they have, inside the ``with`` block."""
        before, self.values = self.values, values
        try:
            yield
        finally:
            self.values = before

    @contextmanager
    def fusing(self, up_to_tokens: int) -> Iterator[None]:
        """Use the fused product for passes of so many tokens or fewer, inside the ``with`` block."""
        before, self.fused_up_to_tokens = self.fused_up_to_tokens, up_to_tokens
        try:
            yield
        finally:
            self.fused_up_to_tokens = before


class QuantizedSparseLinear(nn.Module):
    """y = x Wᵀ + b with W packed.

    Attributes:
        addition: Adds to each product; None adds nothing.

    Args:
        weight: The packed weight.
        where: The layer's part of the flat vector of values; kept.
        bias: Compute dtype (out_features,), or None.
        runtime: Shared by all layers of a model.
    """

    def __init__(self, weight: Weight, where: slice, bias: nn.Parameter | None, runtime: LinearRuntime) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.packed = weight
        self.bias = bias
        self.where = where
        self.addition: Addition | None = None
        self._runtime = runtime

    def effective_weight(self, point: int = 0) -> Tensor:
        """Return W(θ_point) (out_features, in_features), decoded: valid until another layer computes."""
        return self.packed.decode(self._runtime.values.of(self.where, point))  # Equation 26

    def forward(self, inputs: Tensor) -> Tensor:
        """Return y (points · rows, …, out_features).

        Args:
            inputs: Compute dtype (points · rows, …, in_features), the rows of the first point first.
        """
        values = self._runtime.values.of_layer(self.where)
        if len(values) == 1 and inputs.numel() <= self._runtime.fused_up_to_tokens * self.in_features:
            outputs = self.packed.multiply_few(inputs, values[0], self.bias)
        else:
            outputs = self.packed.multiply(inputs.reshape(len(values), -1, self.in_features), values, self.bias)
        outputs = outputs.view(*inputs.shape[:-1], self.out_features)
        if self.addition is not None:
            self.addition(inputs, outputs)
        return outputs

    def extra_repr(self) -> str:
        """Name shape and number of sensitive values."""
        return f"{self.in_features}, {self.out_features}, k={self.where.stop - self.where.start}"
