"""A linear layer whose weight stays packed: 4-bit codes, and 16- or 32-bit sensitive values written over them.

    W[r, c] = dequantise(codes)[r, c];  W[index] = value;  y = x Wᵀ + b       (Equation 26, replace semantics)

The weight exists only while the layer computes, in a buffer that all layers share. Where the loss is wanted at several
points θ (both signs of a step, all its queries), their inputs come stacked, the weight is decoded once, and the values
of one point are written over those of the point before:

    y_p = x_p W(θ_p)ᵀ + b          for p = 1 … points, over one dequantise(codes)

Each point's product is a library call of its own, of the same shape as if the point ran alone: the same bits. Or a
weight brings a product of its own (``PackedWeight.at_points``), whose bits depend on the point alone by construction.
For one to a few tokens of a single point the backend's fused product may take over (Equation 24).

On a CPU, where tokens are few, the weight goes in tiles of rows that stay in the cache: written to memory and read back
it would cost more than the decoding. For the fewest, tiles are the left operand, which a library takes as it lies,
where a right one is packed first:  yᵀ[rows] = W[rows] xᵀ.  Which way is taken depends on shapes, weight and device
alone, so that bits do not depend on anything else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from device_client.model.backends.backend import LinearBackend
from device_client.model.backends.packed_weight import PackedWeight
from device_client.model.points import Point, WritePoints, write_points

TILED_UP_TO_TOKENS = 256
"""Per point, on a CPU. Above, packing each tile's inputs again costs more than memory does."""

TRANSPOSED_UP_TO_TOKENS = 64
"""Above, packing the weight is repaid. Both measured on 4096 × 4096, 11008 × 4096 and 4096 × 11008."""

TILE_ROWS = 2048
_ALIGNMENT_BYTES = 64


class SensitiveValues:
    """The sensitive values of all layers at every point that is being evaluated, in the compute dtype.

    Args:
        initial: Compute dtype (k,), the bundle's values, on the compute device.
    """

    def __init__(self, initial: Tensor) -> None:
        self._at_points = initial[None]

    @property
    def points(self) -> int:
        """How many θ are evaluated side by side."""
        return self._at_points.shape[0]

    @property
    def count(self) -> int:
        """k: values of one θ."""
        return self._at_points.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """The compute dtype."""
        return self._at_points.dtype

    @property
    def device(self) -> torch.device:
        """The compute device."""
        return self._at_points.device

    def write(self, thetas: Sequence[Point], write: WritePoints = write_points) -> None:
        """Take the values of every θ, each rounded once to the compute dtype; in place where they fit."""
        if len(thetas) != self.points:
            self._at_points = torch.empty(len(thetas), self.count, dtype=self.dtype, device=self.device)
        write(thetas, self._at_points)

    def of(self, where: slice, point: int) -> Tensor:
        """Return one layer's values at one point, compute dtype (k of the layer,), a view."""
        return self._at_points[point, where]


class LinearRuntime:
    """What all layers of a model share.

    Attributes:
        backend: Decodes and multiplies.
        values: The sensitive values.
        fused_up_to_tokens: Passes of so many tokens or fewer use the backend's fused product; 0 never does.
    """

    def __init__(self, backend: LinearBackend, values: SensitiveValues) -> None:
        self.backend = backend
        self.values = values
        self.fused_up_to_tokens = 0

    @contextmanager
    def fusing(self, up_to_tokens: int) -> Iterator[None]:
        """Use the fused product for passes of so many tokens or fewer, inside the ``with`` block."""
        before, self.fused_up_to_tokens = self.fused_up_to_tokens, up_to_tokens
        try:
            yield
        finally:
            self.fused_up_to_tokens = before


class QuantizedSparseLinear(nn.Module):
    """y = x Wᵀ + b with W decoded on each call.

    Args:
        weight: The packed weight.
        where: The layer's part of the flat vector of values; kept.
        bias: Compute dtype (out_features,), or None.
        runtime: Shared by all layers of a model.
    """

    def __init__(self, weight: PackedWeight, where: slice, bias: nn.Parameter | None, runtime: LinearRuntime) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.packed = weight
        self.bias = bias
        self.where = where
        self._runtime = runtime
        borders = [*range(0, self.out_features, TILE_ROWS), self.out_features]
        self._tiles = [weight.rows(start, stop) for start, stop in pairwise(borders)]

    def effective_weight(self, point: int = 0) -> Tensor:
        """Return W(θ_point) (out_features, in_features) in the shared buffer: valid until another layer decodes."""
        return self._runtime.backend.dequantize(self.packed, self._values(point))  # Equation 26

    def forward(self, inputs: Tensor) -> Tensor:
        """Return y (points · rows, …, out_features).

        Args:
            inputs: Compute dtype (points · rows, …, in_features), the rows of the first point first.
        """
        runtime = self._runtime
        points = runtime.values.points
        if points == 1 and inputs.numel() <= runtime.fused_up_to_tokens * self.in_features:
            return runtime.backend.linear_small(inputs, self.packed, self._values(0), self.bias)
        outputs = self._at_each_point(inputs.reshape(points, -1, self.in_features))
        return outputs.view(*inputs.shape[:-1], self.out_features)

    def _at_each_point(self, stacked: Tensor) -> Tensor:
        points, tokens, _ = stacked.shape
        if self.packed.at_points is not None:
            values = [self._values(point) for point in range(points)]
            return self.packed.at_points(stacked, self.packed, values, self.bias)
        if stacked.device.type != "cpu" or tokens > TILED_UP_TO_TOKENS:
            return self._by_whole_weight(stacked)
        outputs = self._by_tiles(stacked) if tokens > TRANSPOSED_UP_TO_TOKENS else self._by_tiles_transposed(stacked)
        return outputs if self.bias is None else outputs.add_(self.bias)

    def _by_whole_weight(self, stacked: Tensor) -> Tensor:
        points, tokens, _ = stacked.shape
        outputs = stacked.new_empty(points, tokens, self.out_features)
        for point, dense in self._at_points(self.packed, points):
            _multiply(stacked[point], dense, self.bias, outputs[point])
        return outputs

    def _by_tiles(self, stacked: Tensor) -> Tensor:
        points, tokens, _ = stacked.shape
        outputs = stacked.new_empty(points, tokens, self.out_features)
        inputs = [aligned(of_point) for of_point in stacked]
        for tile in self._tiles:
            for point, dense in self._at_points(tile, points):
                outputs[point, :, tile.place] = torch.mm(inputs[point], dense.T)
        return outputs

    def _by_tiles_transposed(self, stacked: Tensor) -> Tensor:
        points, tokens, _ = stacked.shape
        transposed = stacked.new_empty(points, self.out_features, tokens)
        inputs = [aligned(of_point).T for of_point in stacked]
        for tile in self._tiles:
            for point, dense in self._at_points(tile, points):
                _multiply_into(dense, inputs[point], transposed[point, tile.place])
        return transposed.transpose(1, 2).contiguous()

    def _at_points(self, weight: PackedWeight, points: int) -> Iterator[tuple[int, Tensor]]:
        """Yield each point with W, or some rows of it, at that point: decoded once, then overwritten (Equation 26)."""
        dense = self._runtime.backend.dequantize(weight, self._values(0))
        yield 0, dense
        for point in range(1, points):
            self._runtime.backend.write_sparse(dense, weight, self._values(point))
            yield point, dense

    def _values(self, point: int) -> Tensor:
        return self._runtime.values.of(self.where, point)

    def extra_repr(self) -> str:
        """Name shape, bits and number of sensitive values."""
        bits, count = self.packed.quantized.bits, self.packed.indices.numel()
        return f"{self.in_features}, {self.out_features}, bits={bits}, k={count}"


class PointwiseActivation(nn.Module):
    """An activation function applied in place, point by point.

    An elementwise kernel computes the last elements of a thread's share in another way than the others, with other last
    bits, and where shares end depends on how many elements there are: so each point goes alone, as it would by itself.

    Args:
        function: Elementwise.
        runtime: Shared by all layers of a model.
    """

    def __init__(self, function: nn.Module, runtime: LinearRuntime) -> None:
        super().__init__()
        self.function = function
        self._runtime = runtime
        self._is_silu = type(function).__name__ in ("SiLU", "SiLUActivation")

    def forward(self, inputs: Tensor) -> Tensor:
        """Overwrite ``inputs`` (points · rows, …) with the function of them, and return it."""
        if inputs.requires_grad:
            return self.function(inputs)  # type: ignore[no-any-return]
        for part in inputs.chunk(self._runtime.values.points):
            if self._is_silu:
                functional.silu(part, inplace=True)
            else:
                part.copy_(self.function(part))
        return inputs


def _multiply(inputs: Tensor, dense: Tensor, bias: Tensor | None, outputs: Tensor) -> None:
    """Write x Wᵀ + b to ``outputs`` (tokens, out_features)."""
    if bias is None:
        _multiply_into(aligned(inputs), dense.T, outputs)
    elif _is_aligned(outputs):
        torch.addmm(bias, aligned(inputs), dense.T, out=outputs)
    else:
        outputs.copy_(torch.addmm(bias, aligned(inputs), dense.T))


def _multiply_into(left: Tensor, right: Tensor, outputs: Tensor) -> None:
    """Write a product to ``outputs``, with the same bits wherever in memory they lie."""
    if _is_aligned(outputs):
        torch.mm(left, right, out=outputs)
    else:
        outputs.copy_(torch.mm(left, right))


def aligned(tensor: Tensor) -> Tensor:
    """Return the tensor, or a copy that begins as a fresh one does."""
    return tensor if _is_aligned(tensor) else tensor.clone()


def _is_aligned(tensor: Tensor) -> bool:
    """Return whether a tensor begins as a fresh one does: a library's last bits may depend on it."""
    return tensor.data_ptr() % _ALIGNMENT_BYTES == 0
