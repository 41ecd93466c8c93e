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

from device_client.model.backends.choose import BackendOptions, choose_backend
from device_client.model.backends.native.amx import MOST_COLUMNS, PASS_TOKENS, has_matrix_unit
from device_client.model.backends.native.amx.backend import AmxBackend, AmxWeight, may_use_matrix_unit
from device_client.model.backends.native.build import built_library
from device_client.model.backends.native.library import KernelLibrary
from device_client.model.backends.planned_bytes import planned_backend
from device_client.model.linear import QuantizedSparseLinear
from device_client.model.loader import load_model
from device_client.model.token_batch import TokenBatch
from shared.bundle.config import QuantizedEntry
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
    library = KernelLibrary(built_library(kernels, lambda _: None))
    assert may_use_matrix_unit(library)
    return library


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


def entry_of(shape: tuple[int, int]) -> QuantizedEntry:
    return QuantizedEntry(
        name="layer.weight", shape=shape, blob="block-0000.safetensors", bits=4, codebook="per_row", group_size=None,
        has_bias=False, sensitive_count=1, relative_error=0.0, weighted_relative_error=0.0,
    )  # fmt: skip


def packed_in_panels(backend: AmxBackend, tensor: QuantizedTensor, indices: Tensor) -> AmxWeight:
    weight = backend.pack(tensor, indices)
    assert isinstance(weight, AmxWeight)
    return weight


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
        self.values = torch.stack(
            [torch.randn(len(self.indices), generator=generator) for _ in range(points)]
        ).bfloat16()
        self.bias = torch.randn(rows, generator=generator).bfloat16() if seed % 2 else None
        self.backend = AmxBackend(library, [tensor.shape])
        self.weight = packed_in_panels(self.backend, tensor, self.indices)

    def dense(self, point: int) -> Tensor:
        """Return W at a point, bfloat16."""
        weight = dequantize(self.tensor, dtype=torch.bfloat16)
        weight.view(-1)[self.indices] = self.values[point]
        return weight

    def in_digits(self) -> Tensor:
        """Return W of the fused product, float64: multiples of 2^(exponent of the row's largest − 13)."""
        weight = dequantize(self.tensor, dtype=torch.bfloat16).double()
        unit = torch.exp2(torch.floor(torch.log2(self.weight.largest.double())) - 13)[:, None]
        return torch.round(weight / unit) * unit + (self.dense(0).double() - weight)

    def at_points(self, stacked: Tensor) -> Tensor:
        return self.weight.multiply(stacked, self.values, self.bias)

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

    assert torch.equal(layer.weight.decode(), dequantize(tensor, dtype=torch.bfloat16))
    dense = layer.weight.decode(layer.values[0])
    assert torch.equal(dense, layer.dense(0))
    layer.weight.overwrite(dense, layer.values[1])
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

    outputs = layer.weight.multiply_few(inputs, layer.values[0], layer.bias)

    layer.assert_is_product(outputs, inputs, layer.in_digits(), also=dequantize(tensor))


@pytest.mark.parametrize("form", FORMS)
def test_digits_are_the_decoded_weight_but_for_its_smallest_values(library: KernelLibrary, form: str) -> None:
    layer = Layer(library, random_tensor(4, 3, form, seed=4), seed=4, density=0.0)
    weight, largest = dequantize(layer.tensor, dtype=torch.bfloat16).double(), layer.weight.largest

    error = (layer.in_digits() - weight).abs()

    assert bool((weight.abs() <= largest.double()[:, None] * (1 + 2**-8)).all())
    assert bool((error <= largest.double()[:, None] / 16384).all())
    assert not error[weight.abs() >= largest.double()[:, None] / 64].any()


@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1.0, 1e30])
def test_inputs_may_be_small_or_large_as_a_whole(library: KernelLibrary, scale: float) -> None:
    layer = Layer(library, random_tensor(2, 2, "per_row", seed=6), seed=6, density=0.0)
    inputs = layer.inputs(1, 3)[0] * 2.0
    expected = layer.weight.multiply_few(inputs, layer.values[0], None)

    outputs = layer.weight.multiply_few(inputs * scale, layer.values[0], None)

    size = (inputs * scale).double().abs() @ layer.in_digits().abs().T
    unseen = 1e-30 * 2**-21 * layer.in_digits().abs().sum(1)  # of a token below 1e-30 everywhere
    assert bool(((outputs.double() - expected.double() * scale).abs() <= 2**-6 * size + unseen).all())


@pytest.mark.parametrize("spoiled", [float("inf"), float("-inf"), float("nan")])
def test_a_token_that_is_not_finite_gives_no_numbers_and_spoils_no_other(
    library: KernelLibrary, spoiled: float
) -> None:
    layer = Layer(library, random_tensor(2, 2, "per_row", seed=7), seed=7)
    inputs = layer.inputs(1, 6)[0]
    expected = layer.weight.multiply_few(inputs, layer.values[0], layer.bias)
    inputs[2, 17] = spoiled

    outputs = layer.weight.multiply_few(inputs, layer.values[0], layer.bias)

    assert bool(outputs[2].isnan().all())
    others = [0, 1, 3, 4, 5]
    assert torch.equal(outputs[others], expected[others])


def test_a_token_or_a_row_of_zeros_gives_zeros(library: KernelLibrary) -> None:
    tensor = random_tensor(1, 1, "per_row", seed=1)
    assert tensor.lut is not None
    tensor.lut[3] = 0
    layer = Layer(library, tensor, seed=0, density=0.0)

    outputs = layer.weight.multiply_few(layer.inputs(1, 2)[0], layer.values[0], None)

    assert not outputs[:, 3].any()
    assert outputs[:, :3].all()
    nothing = torch.zeros(1, 128, dtype=torch.bfloat16)
    assert not layer.weight.multiply_few(nothing, layer.values[0], None).any()


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
                alone = layer.weight.multiply(inputs[point : point + 1], layer.values[point : point + 1], layer.bias)
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
            return layer.weight.multiply_few(inputs, layer.values[0], layer.bias)

    assert torch.equal(product(1), product(2))
    assert torch.equal(product(1), product(5))


def test_some_rows_go_with_the_values_of_the_whole_weight(library: KernelLibrary) -> None:
    layer = Layer(library, random_tensor(6, 2, "per_row", seed=2), seed=2)

    for start, stop in [(0, 16), (16, 80), (80, 96)]:
        dense = layer.weight.decode(layer.values[1], slice(start, stop))
        assert torch.equal(dense, layer.dense(1)[start:stop])
        layer.weight.overwrite(dense, layer.values[0], slice(start, stop))
        assert torch.equal(dense, layer.dense(0)[start:stop])


def test_sensitive_values_of_the_widest_rows_are_added_where_they_belong(library: KernelLibrary) -> None:
    """Rows are found by a division in float32: at both ends of every row of the most columns that panels have."""
    layer = Layer(library, random_tensor(2, MOST_COLUMNS // 128, "shared", seed=3), seed=3, density=0.0)
    ends = torch.arange(32)[:, None] * MOST_COLUMNS + torch.tensor([0, 1, MOST_COLUMNS - 2, MOST_COLUMNS - 1])
    weight = packed_in_panels(layer.backend, layer.tensor, ends.flatten())
    values = torch.arange(ends.numel()).bfloat16()
    inputs = torch.zeros(1, MOST_COLUMNS, dtype=torch.bfloat16)
    inputs[0, [0, 1, -2, -1]] = torch.tensor([1.0, 2.0, 4.0, 8.0]).bfloat16()

    outputs = weight.multiply_few(inputs, values, None)

    expected = values.view(32, 4).double() @ torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float64)
    torch.testing.assert_close(outputs[0].double(), expected, rtol=ROUNDING, atol=15 * 4 / 16384)  # of tables below 4


def test_other_tables_are_multiplied_in_units_of_their_own(library: KernelLibrary) -> None:
    layer = Layer(library, random_tensor(1, 1, "per_row", seed=1), seed=0, density=0.0)
    assert layer.tensor.lut is not None
    larger = packed_in_panels(layer.backend, replace(layer.tensor, lut=layer.tensor.lut * 8), layer.indices)
    inputs, none = layer.inputs(1, 1)[0], layer.values[0]

    outputs = larger.multiply_few(inputs, none, None)

    assert torch.equal(outputs, 8 * layer.weight.multiply_few(inputs, none, None))


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

        outputs = layer.weight.multiply_few(inputs.bfloat16(), layer.values[0], None)

        assert outputs.double().unique().tolist() == [smallest]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_largest_sums_of_the_most_columns_do_not_overflow(library: KernelLibrary, sign: float) -> None:
    tensor = random_tensor(1, MOST_COLUMNS // 128, "per_row", seed=1)
    assert tensor.lut is not None
    tensor.lut[:] = 1.9921875
    layer = Layer(library, tensor, seed=0, density=0.0)
    inputs = torch.full((2, MOST_COLUMNS), sign * 1.9921875).bfloat16()

    outputs = layer.weight.multiply_few(inputs, layer.values[0], None)

    assert torch.equal(outputs, torch.full((2, 16), sign * 1.9921875**2 * MOST_COLUMNS).bfloat16())


def test_the_fused_product_keeps_the_shape_of_its_inputs(library: KernelLibrary) -> None:
    layer = Layer(library, random_tensor(2, 2, "per_row", seed=5), seed=5)
    inputs = layer.inputs(1, 6)[0]

    flat = layer.weight.multiply_few(inputs, layer.values[0], layer.bias)
    nested = layer.weight.multiply_few(inputs.view(2, 3, -1), layer.values[0], layer.bias)

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
        layer.weight.multiply_few(inputs[0, :1], layer.values[0], None)
        assert torch.equal(torch.nn.functional.linear(inputs[0], weight), before)


def test_rows_that_are_no_whole_panels_are_refused(library: KernelLibrary) -> None:
    weight = Layer(library, random_tensor(3, 1, "per_row", seed=2), seed=2).weight

    for start, stop in [(0, 8), (8, 24), (16, 47)]:
        with pytest.raises(ValueError, match="whole panels of 16"):
            weight.decode(rows=slice(start, stop))


def test_inputs_of_another_format_are_refused(library: KernelLibrary) -> None:
    layer = Layer(library, random_tensor(1, 1, "per_row", seed=2), seed=2)

    with pytest.raises(TypeError, match="float32"):
        layer.at_points(layer.inputs(2, 3).float())
    with pytest.raises(TypeError, match="float32"):
        layer.weight.multiply_few(layer.inputs(1, 1)[0].float(), layer.values[0], None)


@pytest.mark.parametrize(
    "tensor",
    [
        random_tensor(2, 2, "per_row", seed=0).rows(0, 15),
        random_tensor(2, 2, "per_row", seed=0, bits=3),
        random_tensor(2, 2, "uniform", seed=0, group_size=64),
        random_tensor(1, MOST_COLUMNS // 128 + 1, "shared", seed=0),
        QuantizedTensor(pack_codes(torch.ones(16, 130, dtype=torch.int64), 4), 130, 4, lut=torch.ones(16, 16).half()),
    ],
    ids=["15 rows", "3 bits", "groups of 64", "too wide", "130 columns"],
)
def test_what_does_not_fit_panels_is_left_as_it_is(library: KernelLibrary, tensor: QuantizedTensor) -> None:
    weight = AmxBackend(library, [tensor.shape]).pack(tensor, torch.tensor([3]))

    assert weight.products == "library"
    assert weight.quantized is tensor


def test_a_table_keeps_its_codes_where_an_embedding_reads_them(library: KernelLibrary) -> None:
    tensor = random_tensor(2, 2, "per_row", seed=0)

    assert AmxBackend(library, [tensor.shape]).pack_table(tensor).quantized is tensor


@pytest.mark.parametrize(
    ("dtype", "may_use_it", "products"),
    [
        (torch.bfloat16, True, "matrix unit"),
        (torch.bfloat16, False, "library"),
        (torch.float32, True, "library"),
        (torch.float16, True, "library"),
    ],
)
def test_the_matrix_unit_is_chosen_in_bfloat16_and_can_be_left_alone(
    kernels: Path, library: KernelLibrary, dtype: torch.dtype, may_use_it: bool, products: str
) -> None:
    tensor = random_tensor(2, 2, "per_row", seed=0)
    options = BackendOptions("native", kernels, products=None if may_use_it else "library")

    backend = choose_backend(options, [entry_of(tensor.shape)], dtype, torch.device("cpu")).backend

    assert backend.pack(tensor, torch.tensor([3])).products == products


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
    assert all(layer.packed.products == "matrix unit" for layer in layers)
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
    weights = [module.packed for module in model.network.modules() if isinstance(module, QuantizedSparseLinear)]
    before = [weight.kept_bytes for weight in weights]
    ids = torch.zeros(1, 2, dtype=torch.int64)

    model.keep_decoded(1 << 30)
    model.logits(TokenBatch(ids, torch.ones_like(ids), torch.tensor([0]), torch.tensor([1])))

    assert ([weight.kept_bytes for weight in weights] != before) is is_any
    planned = planned_backend("native", "cpu", 2)
    assert any(planned.is_decoded(entry) for entry in bundle.config.tensors) is is_any


def test_packing_says_what_the_values_replace(library: KernelLibrary) -> None:
    tensor = random_tensor(2, 2, "shared", seed=9)
    indices = torch.tensor([0, 127, 128, 4000, 8191])

    weight = packed_in_panels(AmxBackend(library, [tensor.shape]), tensor, indices)

    assert weight.replaced is not None
    assert torch.equal(weight.replaced, dequantize(tensor, dtype=torch.bfloat16).view(-1)[indices])
    assert weight.positions.tolist() == indices.tolist()
    assert weight.row_starts.tolist() == [0] + [3] * 15 + [4] * 16 + [5]
