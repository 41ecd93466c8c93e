"""Products on the CPU's matrix unit: the codec's numbers, and bits that depend on a point's own inputs alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch_threads import torch_threads

from device_client.model.backends.choose import BackendOptions
from device_client.model.backends.native.backend import NativeBackend
from device_client.model.backends.native.build import built_library
from device_client.model.backends.native.cpu import has_matrix_unit
from device_client.model.backends.native.library import KernelLibrary, described
from device_client.model.backends.packed_weight import PackedWeight, first_of_each_row
from device_client.model.backends.panel_layout import MOST_COLUMNS, PASS_TOKENS
from device_client.model.backends.planned_bytes import is_any_decoded
from device_client.model.linear import QuantizedSparseLinear
from device_client.model.loader import load_model
from device_client.model.token_batch import TokenBatch
from shared.quantization.codec import QuantizedTensor, dequantize
from shared.quantization.packing import pack_codes

ROUNDING = 2**-8
"""Of the sum to bfloat16, relative to it."""

SUMMING = 2**-18
"""Of up to 640 products in float32, relative to the size of what is added up."""

FORMS = ["per_row", "shared", "uniform", "scaled"]


@pytest.fixture(scope="module")
def library(kernels: Path) -> KernelLibrary:
    if not has_matrix_unit():
        pytest.skip("needs a CPU with a matrix unit for bfloat16 (AMX)")
    return KernelLibrary(built_library(kernels, lambda _: None))


def random_tensor(
    panels: int, blocks: int, form: str, *, seed: int, bits: int = 4, group_size: int = 128
) -> QuantizedTensor:
    generator = torch.Generator().manual_seed(seed)
    rows, columns = 16 * panels, 128 * blocks
    grouped = (rows, -(-columns // group_size))

    def halves(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).half()

    codes = pack_codes(torch.randint(0, 1 << bits, (rows, columns), generator=generator), bits)
    if form == "per_row":
        return QuantizedTensor(codes, columns, bits, lut=halves(rows, 1 << bits))
    lut = None if form == "uniform" else halves(1 if form == "shared" else rows, 1 << bits)
    bias = None if form == "shared" else halves(*grouped)
    return QuantizedTensor(codes, columns, bits, lut=lut, scale=halves(*grouped), bias=bias, group_size=group_size)


class Layer:
    """A random weight in panels, at several points.

    Args:
        library: The kernels.
        tensor: The dense part.
        seed: Of positions, values and bias.
        density: Of sensitive values.
        points: How many θ.
    """

    def __init__(
        self, library: KernelLibrary, tensor: QuantizedTensor, *, seed: int, density: float = 0.05, points: int = 2
    ) -> None:
        generator = torch.Generator().manual_seed(seed + 1)
        rows, columns = tensor.shape
        self.tensor = tensor
        self.indices = (torch.rand(rows * columns, generator=generator) < density).nonzero().flatten()
        self.values = [torch.randn(len(self.indices), generator=generator).bfloat16() for _ in range(points)]
        self.bias = torch.randn(rows, generator=generator).bfloat16() if seed % 2 else None
        self.backend = NativeBackend(library, [tensor.shape], torch.bfloat16)
        self.weight = self.backend.pack(tensor, self.indices)

    def dense(self, point: int) -> Tensor:
        """Return W at a point, bfloat16."""
        weight = dequantize(self.tensor, dtype=torch.bfloat16)
        weight.view(-1)[self.indices] = self.values[point]
        return weight

    def in_digits(self) -> Tensor:
        """Return W of the fused product, float64: multiples of 2^(exponent of the row's largest − 13)."""
        weight = dequantize(self.tensor, dtype=torch.bfloat16).double()
        largest = described(self.weight).largest
        assert largest is not None
        unit = torch.exp2(torch.floor(torch.log2(largest.double())) - 13)[:, None]
        return torch.round(weight / unit) * unit + (self.dense(0).double() - weight)

    def at_points(self, stacked: Tensor) -> Tensor:
        assert self.weight.at_points is not None
        return self.weight.at_points(stacked, self.weight, self.values, self.bias)

    def inputs(self, points: int, tokens: int) -> Tensor:
        generator = torch.Generator().manual_seed(tokens)
        return torch.randn(points, tokens, self.tensor.shape[1], generator=generator).bfloat16()

    def assert_is_product(self, outputs: Tensor, inputs: Tensor, weight: Tensor, *, also: Tensor | None = None) -> None:
        """Compare with the sum in float64; ``also`` is added up too where values are replaced within the sum."""
        weight = weight.double()
        expected = inputs.double() @ weight.T + (0 if self.bias is None else self.bias.double())
        size = inputs.double().abs() @ (weight.abs() if also is None else weight.abs() + also.double().abs()).T + 4
        assert bool(((outputs.double() - expected).abs() <= ROUNDING * expected.abs() + SUMMING * size).all())


@st.composite
def tensors(draw: st.DrawFn) -> QuantizedTensor:
    panels, blocks = draw(st.integers(1, 5) | st.integers(15, 37)), draw(st.integers(1, 5))
    form, group_size = draw(st.sampled_from(FORMS)), draw(st.sampled_from([128, 256, 1024]))
    return random_tensor(panels, blocks, form, seed=draw(st.integers(0, 2**16)), group_size=group_size)


densities, seeds = st.sampled_from([0.0, 0.001, 0.3]), st.integers(0, 1)


@settings(max_examples=60, deadline=None)
@given(tensors(), densities, seeds)
def test_panels_decode_bit_exactly_and_take_values(
    library: KernelLibrary, tensor: QuantizedTensor, density: float, seed: int
) -> None:
    layer = Layer(library, tensor, seed=seed, density=density)

    assert torch.equal(layer.backend.dequantize(layer.weight), dequantize(tensor, dtype=torch.bfloat16))
    dense = layer.backend.dequantize(layer.weight, layer.values[0])
    assert torch.equal(dense, layer.dense(0))
    layer.backend.write_sparse(dense, layer.weight, layer.values[1])
    assert torch.equal(dense, layer.dense(1))


@settings(max_examples=60, deadline=None)
@given(tensors(), densities, seeds, st.integers(1, 70), st.integers(1, 5))
def test_the_product_at_every_point_is_that_of_the_decoded_weight(
    library: KernelLibrary, tensor: QuantizedTensor, density: float, seed: int,
    tokens: int, points: int,
) -> None:  # fmt: skip
    layer = Layer(library, tensor, seed=seed, density=density, points=points)
    inputs = layer.inputs(points, tokens)

    outputs = layer.at_points(inputs)

    for point in range(points):
        layer.assert_is_product(outputs[point], inputs[point], layer.dense(point))


@settings(max_examples=60, deadline=None)
@given(tensors(), densities, seeds, st.integers(1, 11))
def test_the_fused_product_of_a_few_tokens_is_that_of_the_decoded_weight(
    library: KernelLibrary, tensor: QuantizedTensor, density: float, seed: int,
    tokens: int,
) -> None:  # fmt: skip
    layer = Layer(library, tensor, seed=seed, density=density)
    inputs = layer.inputs(1, tokens)[0]

    outputs = layer.backend.linear_small(inputs, layer.weight, layer.values[0], layer.bias)

    layer.assert_is_product(outputs, inputs, layer.in_digits(), also=dequantize(tensor))


@pytest.mark.parametrize("form", FORMS)
def test_digits_are_the_decoded_weight_but_for_its_smallest_values(library: KernelLibrary, form: str) -> None:
    layer = Layer(library, random_tensor(4, 3, form, seed=4), seed=4, density=0.0)
    weight, largest = dequantize(layer.tensor, dtype=torch.bfloat16).double(), described(layer.weight).largest
    assert largest is not None

    error = (layer.in_digits() - weight).abs()

    assert bool((weight.abs() <= largest.double()[:, None] * (1 + 2**-8)).all())
    assert bool((error <= largest.double()[:, None] / 16384).all())
    assert not error[weight.abs() >= largest.double()[:, None] / 64].any()


@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1.0, 1e30])
def test_inputs_may_be_small_or_large_as_a_whole(library: KernelLibrary, scale: float) -> None:
    layer = Layer(library, random_tensor(2, 2, "per_row", seed=6), seed=6, density=0.0)
    inputs = layer.inputs(1, 3)[0] * 2.0
    expected = layer.backend.linear_small(inputs, layer.weight, layer.values[0], None)

    outputs = layer.backend.linear_small(inputs * scale, layer.weight, layer.values[0], None)

    size = (inputs * scale).double().abs() @ layer.in_digits().abs().T
    unseen = 1e-30 * 2**-21 * layer.in_digits().abs().sum(1)  # of a token below 1e-30 everywhere
    assert bool(((outputs.double() - expected.double() * scale).abs() <= 2**-6 * size + unseen).all())


@pytest.mark.parametrize("spoiled", [float("inf"), float("-inf"), float("nan")])
def test_a_token_that_is_not_finite_gives_no_numbers_and_spoils_no_other(
    library: KernelLibrary, spoiled: float
) -> None:
    layer = Layer(library, random_tensor(2, 2, "per_row", seed=7), seed=7)
    inputs = layer.inputs(1, 6)[0]
    expected = layer.backend.linear_small(inputs, layer.weight, layer.values[0], layer.bias)
    inputs[2, 17] = spoiled

    outputs = layer.backend.linear_small(inputs, layer.weight, layer.values[0], layer.bias)

    assert bool(outputs[2].isnan().all())
    others = [0, 1, 3, 4, 5]
    assert torch.equal(outputs[others], expected[others])


def test_a_token_or_a_row_of_zeros_gives_zeros(library: KernelLibrary) -> None:
    tensor = random_tensor(1, 1, "per_row", seed=1)
    assert tensor.lut is not None
    tensor.lut[3] = 0
    layer = Layer(library, tensor, seed=0, density=0.0)

    outputs = layer.backend.linear_small(layer.inputs(1, 2)[0], layer.weight, layer.values[0], None)

    assert not outputs[:, 3].any()
    assert outputs[:, :3].all()
    nothing = torch.zeros(1, 128, dtype=torch.bfloat16)
    assert not layer.backend.linear_small(nothing, layer.weight, layer.values[0], None).any()


@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 48, PASS_TOKENS // 2, PASS_TOKENS - 1, PASS_TOKENS + 33])
def test_a_point_has_the_bits_that_it_has_alone_whatever_the_threads(library: KernelLibrary, tokens: int) -> None:
    """Up to three points fit one pass, or not even one does; panels are shared out unevenly."""
    layer = Layer(library, random_tensor(35, 3, "per_row", seed=5), seed=5, points=3)
    inputs = layer.inputs(3, tokens)
    with torch_threads(1):
        together = layer.at_points(inputs)

    for threads in (1, 2, 5):
        with torch_threads(threads):
            assert torch.equal(layer.at_points(inputs), together)
            for point in range(3):
                alone = layer.weight.at_points(  # type: ignore[misc]
                    inputs[point : point + 1], layer.weight, [layer.values[point]], layer.bias
                )
                assert torch.equal(alone[0], together[point])


def test_a_tokens_outputs_do_not_depend_on_the_tokens_beside_it(library: KernelLibrary) -> None:
    layer = Layer(library, random_tensor(20, 5, "uniform", seed=3), seed=3, points=1)
    inputs = layer.inputs(1, PASS_TOKENS + 40)

    outputs = layer.at_points(inputs)

    for first, last in [(0, 1), (3, 40), (PASS_TOKENS - 1, PASS_TOKENS + 2)]:
        assert torch.equal(layer.at_points(inputs[:, first:last]), outputs[:, first:last])


@pytest.mark.parametrize("tokens", [1, 4])
def test_the_number_of_threads_changes_no_bit_of_the_fused_product(library: KernelLibrary, tokens: int) -> None:
    layer = Layer(library, random_tensor(35, 3, "per_row", seed=8), seed=8)
    inputs = layer.inputs(1, tokens)[0]

    def product(threads: int) -> Tensor:
        with torch_threads(threads):
            return layer.backend.linear_small(inputs, layer.weight, layer.values[0], layer.bias)

    assert torch.equal(product(1), product(2))
    assert torch.equal(product(1), product(5))


def test_some_rows_go_with_the_values_of_the_whole_weight(library: KernelLibrary) -> None:
    layer = Layer(library, random_tensor(6, 2, "per_row", seed=2), seed=2)
    inputs = layer.inputs(2, 3)
    fused = layer.backend.linear_small(inputs[0], layer.weight, layer.values[0], None)

    for start, stop in [(0, 16), (16, 80), (80, 96)]:
        rows = layer.weight.rows(start, stop)
        assert (rows.in_panels, rows.at_points) == (True, None)
        assert torch.equal(layer.backend.dequantize(rows, layer.values[1]), layer.dense(1)[start:stop])
        assert torch.equal(layer.backend.linear_small(inputs[0], rows, layer.values[0], None), fused[:, start:stop])


def test_sensitive_values_of_the_widest_rows_are_added_where_they_belong(library: KernelLibrary) -> None:
    """Rows are found by a division in float32: at both ends of every row of the most columns that panels have."""
    layer = Layer(library, random_tensor(2, MOST_COLUMNS // 128, "shared", seed=3), seed=3, density=0.0)
    ends = torch.arange(32)[:, None] * MOST_COLUMNS + torch.tensor([0, 1, MOST_COLUMNS - 2, MOST_COLUMNS - 1])
    weight = layer.backend.pack(layer.tensor, ends.flatten())
    values = torch.arange(ends.numel()).bfloat16()
    inputs = torch.zeros(1, MOST_COLUMNS, dtype=torch.bfloat16)
    inputs[0, [0, 1, -2, -1]] = torch.tensor([1.0, 2.0, 4.0, 8.0]).bfloat16()

    outputs = layer.backend.linear_small(inputs, weight, values, None)

    expected = values.view(32, 4).double() @ torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float64)
    torch.testing.assert_close(outputs[0].double(), expected, rtol=ROUNDING, atol=15 * 4 / 16384)  # of tables below 4


def test_a_weight_with_other_tensors_is_not_taken_for_the_one_before(library: KernelLibrary) -> None:
    one, other = (Layer(library, random_tensor(1, 1, "per_row", seed=seed), seed=0) for seed in (1, 2))

    mixed = replace(one.weight, quantized=other.weight.quantized)

    assert torch.equal(one.backend.dequantize(mixed, one.values[0]), other.dense(0))


def test_other_tables_are_multiplied_in_units_of_their_own(library: KernelLibrary) -> None:
    layer = Layer(library, random_tensor(1, 1, "per_row", seed=1), seed=0)
    assert layer.weight.quantized.lut is not None
    larger = replace(layer.weight.quantized, lut=layer.weight.quantized.lut * 8)
    inputs, none = layer.inputs(1, 1)[0], torch.zeros_like(layer.values[0])

    outputs = layer.backend.linear_small(inputs, replace(layer.weight, quantized=larger), none, None)

    expected = layer.backend.linear_small(inputs, layer.weight, none, None).double()
    replaced = layer.weight.replaced
    assert replaced is not None
    left = torch.zeros(16 * 128, dtype=torch.float64)
    left[layer.indices] = replaced.double()
    left_over = inputs.double() @ left.view(16, 128).T  # what is replaced is known of the smaller tables only
    torch.testing.assert_close(outputs.double(), 8 * (expected + left_over) - left_over, rtol=0.02, atol=0.5)


def test_three_digits_hold_an_input_to_its_last_bit(library: KernelLibrary) -> None:
    """Large inputs that cancel leave one that only the lowest digit can tell from its neighbours."""
    tensor = random_tensor(1, 1, "per_row", seed=1)
    assert tensor.lut is not None
    tensor.lut[:, 0], tensor.lut[:, 1], tensor.lut[:, 2] = 0.0, 1.0, -1.0
    columns = torch.zeros(16, 128, dtype=torch.uint8)
    columns[:, [0, 2]], columns[:, 1] = 1, 2
    layer = Layer(library, replace(tensor, codes=pack_codes(columns, 4)), seed=0, density=0.0)
    for smallest in ((1 + 2**-7) * 2**-14, -(1 + 2**-7) * 2**-14):
        inputs = torch.zeros(1, 128)
        inputs[0, :3] = torch.tensor([1.9921875, 1.9921875, smallest])

        outputs = layer.backend.linear_small(inputs.bfloat16(), layer.weight, layer.values[0], None)

        assert outputs.double().unique().tolist() == [smallest]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_largest_sums_of_the_most_columns_do_not_overflow(library: KernelLibrary, sign: float) -> None:
    tensor = random_tensor(1, MOST_COLUMNS // 128, "per_row", seed=1)
    assert tensor.lut is not None
    tensor.lut[:] = 1.9921875
    layer = Layer(library, tensor, seed=0, density=0.0)
    inputs = torch.full((2, MOST_COLUMNS), sign * 1.9921875).bfloat16()

    outputs = layer.backend.linear_small(inputs, layer.weight, layer.values[0], None)

    assert torch.equal(outputs, torch.full((2, 16), sign * 1.9921875**2 * MOST_COLUMNS).bfloat16())


def test_the_fused_product_keeps_the_shape_of_its_inputs(library: KernelLibrary) -> None:
    layer = Layer(library, random_tensor(2, 2, "per_row", seed=5), seed=5)
    inputs = layer.inputs(1, 6)[0]

    flat = layer.backend.linear_small(inputs, layer.weight, layer.values[0], layer.bias)
    nested = layer.backend.linear_small(inputs.view(2, 3, -1), layer.weight, layer.values[0], layer.bias)

    assert nested.shape == (2, 3, 32)
    assert torch.equal(nested.view(6, 32), flat)


def test_torchs_own_products_stay_what_they_are(library: KernelLibrary) -> None:
    """Its library uses the same registers on the same threads, and may think that their shapes are as it left them."""
    layer = Layer(library, random_tensor(16, 4, "per_row", seed=1), seed=1)
    inputs, weight = layer.inputs(2, 70), layer.dense(0)
    before = torch.nn.functional.linear(inputs[0], weight)
    ours = layer.at_points(inputs)

    for _ in range(3):
        assert torch.equal(layer.at_points(inputs), ours)
        assert torch.equal(torch.nn.functional.linear(inputs[0], weight), before)
        layer.backend.linear_small(inputs[0, :1], layer.weight, layer.values[0], None)
        assert torch.equal(torch.nn.functional.linear(inputs[0], weight), before)


def test_rows_that_are_no_whole_panels_are_refused(library: KernelLibrary) -> None:
    weight = Layer(library, random_tensor(3, 1, "per_row", seed=2), seed=2).weight

    for start, stop in [(0, 8), (8, 24), (16, 47)]:
        with pytest.raises(ValueError, match="whole panels of 16"):
            weight.rows(start, stop)


def test_inputs_of_another_format_are_refused(library: KernelLibrary) -> None:
    layer = Layer(library, random_tensor(1, 1, "per_row", seed=2), seed=2)

    with pytest.raises(TypeError, match="float32"):
        layer.at_points(layer.inputs(2, 3).float())
    with pytest.raises(TypeError, match="float32"):
        layer.backend.linear_small(layer.inputs(1, 1)[0].float(), layer.weight, layer.values[0], None)


@pytest.mark.parametrize(
    ("tensor", "dtype"),
    [
        (random_tensor(2, 2, "per_row", seed=0), torch.float32),
        (random_tensor(2, 2, "per_row", seed=0), torch.float16),
        (random_tensor(2, 2, "per_row", seed=0).rows(0, 15), torch.bfloat16),
        (random_tensor(2, 2, "per_row", seed=0, bits=3), torch.bfloat16),
        (random_tensor(2, 2, "uniform", seed=0, group_size=64), torch.bfloat16),
        (random_tensor(1, MOST_COLUMNS // 128 + 1, "shared", seed=0), torch.bfloat16),
        (QuantizedTensor(pack_codes(torch.ones(16, 130, dtype=torch.int64), 4), 130, 4, lut=torch.ones(16, 16).half()),
         torch.bfloat16),
    ],
    ids=["float32", "float16", "15 rows", "3 bits", "groups of 64", "too wide", "130 columns"],
)  # fmt: skip
def test_what_does_not_fit_panels_is_left_as_it_is(
    library: KernelLibrary, tensor: QuantizedTensor, dtype: torch.dtype
) -> None:
    weight = NativeBackend(library, [tensor.shape], dtype).pack(tensor, torch.tensor([3]))

    assert (weight.in_panels, weight.at_points) == (False, None)
    assert weight.quantized is tensor


def test_the_matrix_unit_can_be_left_alone(library: KernelLibrary) -> None:
    tensor = random_tensor(2, 2, "per_row", seed=0)
    backend = NativeBackend(library, [tensor.shape], torch.bfloat16, matrix_unit=False)

    assert not backend.pack(tensor, torch.tensor([3])).in_panels


def test_a_small_weight_that_leaves_no_room_for_packed_inputs_gets_it_elsewhere(library: KernelLibrary) -> None:
    layer = Layer(library, random_tensor(1, 2, "per_row", seed=4), seed=4)
    assert layer.backend.workspace_bytes < PASS_TOKENS * 256 * 2
    inputs = layer.inputs(2, PASS_TOKENS)

    layer.assert_is_product(layer.at_points(inputs)[1], inputs[1], layer.dense(1))


@pytest.mark.parametrize("model_type", ["llama", "opt"])
def test_a_models_points_have_the_bits_that_each_has_alone(
    case_of: Callable, kernels: Path, library: KernelLibrary, model_type: str
) -> None:
    wide = {"hidden_size": 128, ("ffn_dim" if model_type == "opt" else "intermediate_size"): 256}
    if model_type == "opt":
        wide["word_embed_proj_dim"] = 128
    bundle = case_of(model_type, sensitive=300, **wide).bundle
    options = {"device": "cpu", "compute_dtype": torch.bfloat16}
    model = load_model(bundle, backend=BackendOptions("native", kernels), **options)
    layers = [module for module in model.network.modules() if isinstance(module, QuantizedSparseLinear)]
    assert all(layer.packed.in_panels for layer in layers)
    assert model.products == "matrix unit"
    model.keep_decoded(1 << 30)  # for other products than these
    ids = torch.randint(0, 256, (3, 11), generator=torch.Generator().manual_seed(2))
    batch = TokenBatch(ids, torch.ones_like(ids), torch.tensor([0, 1, 2]), torch.tensor([10, 3, 7]))
    thetas = [model.initial_theta() + 0.1, model.initial_theta() - 0.1]
    model.write_points(thetas)

    together = model.logits(batch)

    reference = load_model(bundle, backend=BackendOptions("reference"), **options)
    for theta, found in zip(thetas, together, strict=True):
        model.write_points([theta])
        assert torch.equal(model.logits(batch)[0], found)
        reference.write_points([theta])
        torch.testing.assert_close(found, reference.logits(batch)[0], rtol=0.05, atol=0.1)


WIDE = {"hidden_size": 128, "intermediate_size": 256}


@pytest.mark.parametrize(
    ("form", "options", "is_any"),
    [
        ("per_row", WIDE, False),
        ("per_row", WIDE | {"bits": 8}, True),
        ("shared", WIDE, True),  # in groups of 24
        ("per_row", WIDE | {"intermediate_size": 200}, True),  # the others fit
    ],
)
def test_decoded_weights_are_kept_and_planned_for_only_where_some_are_decoded(
    case_of: Callable, kernels: Path, library: KernelLibrary, form: str, options: dict[str, int], is_any: bool
) -> None:
    bundle = case_of("llama", form, sensitive=300, **options).bundle
    model = load_model(bundle, device="cpu", compute_dtype=torch.bfloat16, backend=BackendOptions("native", kernels))
    before = model.runtime.backend

    model.keep_decoded(1 << 30)

    assert (model.runtime.backend is not before) is is_any
    assert is_any_decoded("native", bundle.config.tensors, "bfloat16") is is_any


def test_packing_says_what_the_values_replace(library: KernelLibrary) -> None:
    tensor = random_tensor(2, 2, "shared", seed=9)
    indices = torch.tensor([0, 127, 128, 4000, 8191])

    weight = NativeBackend(library, [tensor.shape], torch.bfloat16).pack(tensor, indices)

    assert isinstance(weight, PackedWeight)
    assert weight.replaced is not None
    assert torch.equal(weight.replaced, dequantize(tensor, dtype=torch.bfloat16).view(-1)[indices])
    assert torch.equal(weight.row_starts, first_of_each_row(indices, *tensor.shape))
