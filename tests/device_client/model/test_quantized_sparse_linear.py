"""One layer: tiles of rows, whole weights and kept ones compute the same, and points do not feel each other."""

from __future__ import annotations

import pytest
import torch
from random_bundle import random_quantized
from torch import Tensor, nn

from device_client.model.backends.library_product import TILE_ROWS, TILED_UP_TO_TOKENS, TRANSPOSED_UP_TO_TOKENS
from device_client.model.backends.native.backend import NativeBackend
from device_client.model.backends.native.library import KernelLibrary
from device_client.model.backends.reference.backend import ReferenceBackend
from device_client.model.linear import LinearRuntime, QuantizedSparseLinear, SensitiveValues
from shared.quantization.codec import dequantize

BORDER = TILED_UP_TO_TOKENS
IN_FEATURES = 48


class ThreeTiles:
    """A float32 layer of three tiles of rows, the last one short, with 200 values, some in each tile.

    Args:
        is_kept: Whether its weight is kept decoded.
        has_bias: Whether the layer adds one.
    """

    def __init__(self, *, is_kept: bool = False, has_bias: bool = False) -> None:
        generator = torch.Generator().manual_seed(7)
        shape = (2 * TILE_ROWS + 40, IN_FEATURES)
        self.tensor = random_quantized(shape, "per_row", 4, generator)
        self.indices = torch.randperm(shape[0] * shape[1], generator=generator)[:200].sort().values
        bias = nn.Parameter(torch.randn(shape[0], generator=generator), requires_grad=False)
        self.bias = bias if has_bias else None
        backend = ReferenceBackend([shape], torch.float32, torch.device("cpu"))
        weight = backend.pack(self.tensor, self.indices)
        if is_kept:
            weight.keep_decoded()
        self._values = SensitiveValues(torch.zeros(200))
        runtime = LinearRuntime(backend, self._values)
        self._layer = QuantizedSparseLinear(weight, slice(0, 200), self.bias, runtime)

    def at(self, thetas: Tensor, inputs: Tensor) -> Tensor:
        """Return y (points, tokens, out_features) at every θ (points, 200), each with its inputs."""
        self._values.write(list(thetas))
        return self._layer(inputs)


def thetas_and_inputs(points: int, tokens: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    return torch.randn(points, 200, generator=generator), torch.randn(points, tokens, IN_FEATURES, generator=generator)


@pytest.mark.parametrize("tokens", [1, TRANSPOSED_UP_TO_TOKENS, BORDER, BORDER + 1])
@pytest.mark.parametrize("has_bias", [False, True])
def test_tiles_of_rows_and_whole_weights_multiply_alike(tokens: int, has_bias: bool) -> None:
    layer = ThreeTiles(has_bias=has_bias)
    thetas, inputs = thetas_and_inputs(2, tokens)

    outputs = layer.at(thetas, inputs)

    for point in range(2):
        weight = dequantize(layer.tensor)
        weight.view(-1)[layer.indices] = thetas[point]
        expected = nn.functional.linear(inputs[point], weight, layer.bias)
        torch.testing.assert_close(outputs[point], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tokens", [1, 3, TRANSPOSED_UP_TO_TOKENS, 201, BORDER, BORDER + 1, BORDER + 45])
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_layer_gives_each_point_the_bits_that_it_has_alone(tokens: int, has_bias: bool) -> None:
    layer = ThreeTiles(has_bias=has_bias)
    thetas, inputs = thetas_and_inputs(3, tokens)

    together = layer.at(thetas, inputs)

    for point in range(3):
        assert torch.equal(layer.at(thetas[point : point + 1], inputs[point : point + 1])[0], together[point])


@pytest.mark.parametrize("first_tokens", [3, BORDER + 1])
def test_a_layer_whose_weight_is_kept_gives_the_same_bits_in_every_order_of_its_ways(first_tokens: int) -> None:
    """Tiles and whole weights take turns; what one of them has kept, or written over, the other one meets."""
    plain, cached = ThreeTiles(), ThreeTiles(is_kept=True)

    for points, tokens in [(2, first_tokens), (1, 201), (2, BORDER + 1), (3, 3), (1, BORDER + 45), (2, BORDER)]:
        thetas, inputs = thetas_and_inputs(points, tokens)
        assert torch.equal(cached.at(thetas, inputs), plain.at(thetas, inputs)), (points, tokens)


def test_a_backward_pass_follows_from_the_decoded_weight_and_the_positions(library: KernelLibrary) -> None:
    """∂L/∂x = ∂L/∂y · W and ∂L/∂value = Σ_t ∂L/∂y[t, r] · x[t, c], against autograd over a dense weight."""
    generator = torch.Generator().manual_seed(3)
    shape = (70, IN_FEATURES)
    tensor = random_quantized(shape, "uniform", 4, generator)
    indices = torch.randperm(shape[0] * shape[1], generator=generator)[:40].sort().values
    values, inputs, upstream = (
        torch.randn(*size, generator=generator) for size in [(40,), (9, shape[1]), (9, shape[0])]
    )
    dense = dequantize(tensor)
    dense.view(-1)[indices] = values
    dense, wanted_inputs = dense.requires_grad_(), inputs.clone().requires_grad_()
    (wanted_inputs @ dense.T).backward(upstream)
    assert dense.grad is not None

    reference = ReferenceBackend([shape], torch.float32, torch.device("cpu"))
    for weight in (
        reference.pack(tensor, indices),
        NativeBackend(library, [shape], torch.float32).pack(tensor, indices),
    ):
        rows, columns = weight.positions.long() // shape[1], weight.positions.long() % shape[1]
        assert torch.equal(upstream @ weight.decode(values), wanted_inputs.grad)
        found = (upstream[:, rows] * inputs[:, columns]).sum(0)
        torch.testing.assert_close(found, dense.grad.view(-1)[indices], rtol=1e-5, atol=1e-5)
