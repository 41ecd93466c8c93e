"""Triton's kernels equal the codec bit for bit and float64 products within float32's error.

Without a GPU they run in Triton's interpreter, on the CPU; with one, compiled. The interpreter truncates where a GPU
rounds to bfloat16, so bfloat16 is tested on a GPU only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from random_bundle import random_quantized
from torch import Tensor

from device_client.model.backends.reference.backend import ReferenceBackend
from device_client.model.backends.triton import why_unavailable
from device_client.model.embeddings import QuantizedHead
from device_client.model.linear import LinearRuntime, SensitiveValues
from shared.quantization.codec import QuantizedTensor, dequantize

pytest.importorskip("triton", reason="Triton is for Linux")
from device_client.model.backends.triton.backend import MOST_TOKENS, TritonBackend

HAS_CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if HAS_CUDA else "cpu")
FORMS = ["per_row", "shared", "uniform"]
ROUNDED_TO = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.skipif(
    (reason := why_unavailable(DEVICE)) is not None, reason=f"Triton's kernels cannot run here: {reason}"
)
needs_gpu = pytest.mark.skipif(not HAS_CUDA, reason="needs a CUDA device")


def moved(tensor: QuantizedTensor) -> QuantizedTensor:
    parts = {name: part.to(DEVICE) for name, part in tensor.parts.items()}
    return QuantizedTensor(in_features=tensor.in_features, bits=tensor.bits, group_size=tensor.group_size, **parts)


def random_indices(shape: tuple[int, int], count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(shape[0] * shape[1], generator=generator)[:count].sort().values


def normal(*size: int, seed: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def assert_product(found: Tensor, inputs: Tensor, tensor: QuantizedTensor, indices: Tensor, values: Tensor) -> None:
    """A float32 sum of n terms errs by at most n·2⁻²⁴ of the sum of magnitudes; the result is rounded once more."""
    decoded = dequantize(tensor).double().cpu()
    effective = decoded.clone()
    effective.view(-1)[indices.cpu()] = values.double().cpu()
    x = inputs.double().cpu()
    expected = x @ effective.T
    magnitudes = x.abs() @ (2 * decoded.abs() + effective.abs()).T
    allowed = (x.shape[1] + 4) * 2.0**-24 * magnitudes + ROUNDED_TO[inputs.dtype] * expected.abs() + 1e-7
    assert found.dtype == inputs.dtype
    assert ((found.double().cpu() - expected).abs() <= allowed).all()


@pytest.mark.parametrize("shape", [(7, 45), (5, 172), (3, 1), (9, 64)])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("form", FORMS)
def test_decoding_is_bit_exact_in_every_form(form: str, bits: int, shape: tuple[int, int]) -> None:
    tensor = moved(random_quantized(shape, form, bits, torch.Generator().manual_seed(bits)))

    for dtype in (torch.float32, torch.float16):
        backend = TritonBackend([shape], dtype, DEVICE)
        weight = backend.pack(tensor, torch.empty(0, dtype=torch.int64, device=DEVICE)).decode()

        assert weight.is_contiguous()
        assert torch.equal(weight, dequantize(tensor, dtype=dtype))


def test_rows_longer_than_a_tile_are_bit_exact() -> None:
    tensor = moved(random_quantized((5, 2300), "uniform", 4, torch.Generator().manual_seed(1)))
    backend = TritonBackend([(5, 2300)], torch.float16, DEVICE)

    weight = backend.pack(tensor, torch.empty(0, dtype=torch.int64, device=DEVICE)).decode()

    assert torch.equal(weight, dequantize(tensor, dtype=torch.float16))


def test_two_nibbles_of_a_byte_are_two_columns_low_first() -> None:
    row = torch.tensor([[0x21, 0x0F]], dtype=torch.uint8)
    tensor = moved(QuantizedTensor(row, 3, 4, lut=torch.arange(16).half()[None]))
    backend = TritonBackend([(1, 3)], torch.float32, DEVICE)
    weight = backend.pack(tensor, torch.tensor([1], device=DEVICE))
    inputs = torch.tensor([[100.0, 10.0, 1.0]], device=DEVICE)

    assert weight.decode().tolist() == [[1.0, 2.0, 15.0]]
    assert backend.pack_table(tensor).multiply_few(inputs, torch.empty(0), None).tolist() == [[135.0]]
    values, bias = torch.tensor([7.0], device=DEVICE), torch.ones(1, device=DEVICE)
    product = weight.multiply_few(inputs, values, bias)
    assert product.tolist() == [[186.0]]  # 100 · 1 + 10 · 7 + 1 · 15, and the bias
    assert weight.multiply_few(inputs.view(1, 1, 3), values, bias).tolist() == [[[186.0]]]


def test_all_weights_share_one_buffer_as_large_as_the_largest() -> None:
    shapes = [(8, 30), (3, 7), (2, 90)]
    tensors = [
        moved(random_quantized(shape, "per_row", 4, torch.Generator().manual_seed(i))) for i, shape in enumerate(shapes)
    ]
    backend = TritonBackend(shapes, torch.float16, DEVICE)

    addresses = set()
    for tensor in [*tensors, *reversed(tensors)]:
        weight = backend.pack(tensor, torch.empty(0, dtype=torch.int64, device=DEVICE)).decode()
        addresses.add(weight.data_ptr())
        assert torch.equal(weight, dequantize(tensor, dtype=torch.float16))
        weight.fill_(float("nan"))

    assert len(addresses) == 1
    assert backend.workspace_bytes == 8 * 30 * 2


def test_indices_are_kept_narrow_with_the_start_of_every_row() -> None:
    tensor = moved(random_quantized((4, 10), "per_row", 4, torch.Generator().manual_seed(1)))
    backend = TritonBackend([(4, 10)], torch.float32, DEVICE)

    weight = backend.pack(tensor, torch.tensor([0, 9, 20, 39], device=DEVICE))

    assert weight.positions.dtype == torch.int32
    assert weight.positions.tolist() == [0, 9, 20, 39]
    assert weight.row_starts.tolist() == [0, 2, 2, 3, 4]


@pytest.mark.parametrize("count", [0, 1, 600])
def test_sensitive_values_overwrite_their_positions_and_nothing_else(count: int) -> None:
    shape = (6, 172)
    backend = TritonBackend([shape], torch.float16, DEVICE)
    tensor = moved(random_quantized(shape, "per_row", 4, torch.Generator().manual_seed(1)))
    indices, values = random_indices(shape, count, seed=2), normal(count, seed=3).half()
    expected = dequantize(tensor, dtype=torch.float16).cpu()
    expected.view(-1)[indices] = values
    weight = backend.pack(tensor, indices.to(DEVICE))

    dense = weight.decode()
    weight.overwrite(dense, values.to(DEVICE))

    assert torch.equal(dense.cpu(), expected)


@pytest.mark.parametrize("shape", [(7, 45), (5, 172), (3, 1)])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("form", FORMS)
def test_products_are_those_of_float64_within_the_error_of_float32(
    form: str, bits: int, shape: tuple[int, int]
) -> None:
    tensor = moved(random_quantized(shape, form, bits, torch.Generator().manual_seed(bits)))
    indices = random_indices(shape, min(11, shape[0] * shape[1]), seed=bits)

    for dtype, tokens in ((torch.float32, 1), (torch.float16, 3)):
        backend = TritonBackend([shape], dtype, DEVICE)
        inputs = normal(tokens, shape[1], seed=4).to(DEVICE, dtype)
        values = normal(len(indices), seed=5).to(DEVICE, dtype)
        product = backend.pack(tensor, indices.to(DEVICE)).multiply_few(inputs, values, None)

        assert_product(product, inputs, tensor, indices, values)


def assert_multiplies(shape: tuple[int, int], count: int, tokens: int, dtype: torch.dtype) -> None:
    """The product with ``count`` sensitive values is that of float64, and the same bits each time."""
    tensor = moved(random_quantized(shape, "per_row", 4, torch.Generator().manual_seed(1)))
    indices = random_indices(shape, count, seed=2)
    inputs, values = normal(tokens, shape[1], seed=3).to(DEVICE, dtype), normal(count, seed=4).to(DEVICE, dtype)
    backend = TritonBackend([shape], dtype, DEVICE)
    weight = backend.pack(tensor, indices.to(DEVICE))

    product = weight.multiply_few(inputs, values, None)

    assert_product(product, inputs, tensor, indices, values)
    assert torch.equal(product, weight.multiply_few(inputs, values, None))


@pytest.mark.parametrize("tokens", [1, 2, MOST_TOKENS, MOST_TOKENS + 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_any_number_of_tokens_is_multiplied(tokens: int, dtype: torch.dtype) -> None:
    assert_multiplies((6, 1100), 9, tokens, dtype)  # two rounds of the loop over a row


def test_rows_without_values_and_rows_with_many_are_corrected_alike() -> None:
    shape = (6, 90)
    tensor = moved(random_quantized(shape, "shared", 4, torch.Generator().manual_seed(1)))
    indices = torch.cat([torch.arange(2 * 90, 2 * 90 + 77), torch.tensor([4 * 90 + 89])])
    inputs, values = normal(2, 90, seed=3).to(DEVICE), normal(78, seed=4).to(DEVICE)
    backend = TritonBackend([shape], torch.float32, DEVICE)

    product = backend.pack(tensor, indices.to(DEVICE)).multiply_few(inputs, values, None)

    assert_product(product, inputs, tensor, indices, values)


def test_a_weight_without_sensitive_values_is_multiplied_as_it_is() -> None:
    tensor = moved(random_quantized((5, 48), "per_row", 4, torch.Generator().manual_seed(1)))
    backend = TritonBackend([(5, 48)], torch.float32, DEVICE)
    none = torch.empty(0, device=DEVICE)
    weight = backend.pack(tensor, none.long())
    inputs, bias = normal(1, 48, seed=3).to(DEVICE), normal(5, seed=4).to(DEVICE)

    without_bias = weight.multiply_few(inputs, none, None)

    assert_product(without_bias, inputs, tensor, none.long(), none)
    assert torch.allclose(weight.multiply_few(inputs, none, bias), without_bias + bias, atol=1e-6, rtol=1e-6)


def test_inputs_may_lie_apart_in_memory() -> None:
    tensor = moved(random_quantized((5, 48), "per_row", 4, torch.Generator().manual_seed(1)))
    backend = TritonBackend([(5, 48)], torch.float16, DEVICE)
    weight = backend.pack(tensor, torch.tensor([3], device=DEVICE))
    inputs, values = normal(48, 2, seed=3).half().to(DEVICE), torch.ones(1, dtype=torch.float16, device=DEVICE)

    product = weight.multiply_few(inputs.T, values, None)

    assert torch.equal(product, weight.multiply_few(inputs.T.contiguous(), values, None))


@pytest.mark.parametrize("tokens", [1, MOST_TOKENS + 3])
@pytest.mark.parametrize("bits", [8, 4])
def test_a_head_is_multiplied_from_its_codes_and_decoded_in_tiles(bits: int, tokens: int) -> None:
    shape, group_size = (37, 60), 60 if bits == 8 else 32
    drawn = random_quantized(shape, "uniform", bits, torch.Generator().manual_seed(1))
    groups = (shape[0], -(-shape[1] // group_size))
    scale, bias = (normal(*groups, seed=seed).half() * 0.01 for seed in (2, 3))
    table = moved(QuantizedTensor(drawn.codes, shape[1], bits, scale=scale, bias=bias, group_size=group_size))
    backend = TritonBackend([shape], torch.float16, DEVICE)
    runtime = LinearRuntime(backend, SensitiveValues(torch.empty(0, dtype=torch.float16, device=DEVICE)))
    head = QuantizedHead(backend.pack_table(table), None, runtime)
    hidden = normal(tokens, shape[1], seed=4).to(DEVICE, torch.float16)

    with runtime.fusing(tokens):
        fused = head(hidden)

    none = torch.empty(0, dtype=torch.int64)
    assert_product(fused, hidden, table, none, none.half())
    assert torch.equal(backend.pack_table(table).decode().cpu(), dequantize(table, dtype=torch.float16).cpu())
    tiles = head.write_logits(hidden[None], torch.empty(1, tokens, shape[0], device=DEVICE))
    torch.testing.assert_close(tiles[0].half(), fused, rtol=4e-3, atol=4e-3)


@pytest.mark.skipif(HAS_CUDA, reason="with a GPU nothing is interpreted")
def test_a_cpu_can_run_the_kernels_in_the_interpreter_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert why_unavailable(torch.device("cpu")) is None

    monkeypatch.delenv("TRITON_INTERPRET")

    assert why_unavailable(torch.device("cpu")) == "its kernels need a CUDA device"


@pytest.mark.skipif(HAS_CUDA, reason="there is a GPU")
def test_a_missing_gpu_is_named() -> None:
    assert why_unavailable(torch.device("cuda:1")) == "its kernels need a CUDA device, and cuda:1 cannot be used"


def compiled_apart(*arguments: str, cache: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {
        "TRITON_CACHE_DIR": str(cache),
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests/support"))),
    }
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def test_every_kernel_compiles_for_the_gpus_it_is_meant_for(tmp_path: Path) -> None:
    orin, ada = "87", "89"

    compiled = json.loads(compiled_apart("tests/support/compile_triton_kernels.py", orin, ada, cache=tmp_path))

    for capability in (orin, ada):
        assert all(f".target sm_{capability}" in ptx for ptx in compiled[capability].values())
        decoding = compiled[capability]["dequantize, per row"]
        assert "ld.global.v4.b32" in decoding  # 32 codes in one instruction
        assert "st.global.v4.b32" in decoding
        multiplying = compiled[capability]["linear_small, dense"]
        assert multiplying.count("ld.global.v4.b32") == 5  # 32 codes, 4 times 8 inputs
        assert multiplying.count("bar.sync") <= 1  # none in the loop over a row


def test_asking_whether_triton_can_run_does_not_import_it(tmp_path: Path) -> None:
    program = (
        "import sys, torch\n"
        "from device_client.model.backends.triton import why_unavailable\n"
        "why_unavailable(torch.device('cpu'))\n"
        "print('triton' in sys.modules)"
    )

    assert compiled_apart("-c", program, cache=tmp_path).strip() == "False"


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("form", FORMS)
def test_on_a_gpu_a_large_weight_equals_the_reference_backend_bit_for_bit(form: str, dtype: torch.dtype) -> None:
    shape = (4096, 4096)
    tensor = moved(random_quantized(shape, form, 4, torch.Generator().manual_seed(1)))
    indices = random_indices(shape, 16_777, seed=2).to(DEVICE)
    values = normal(16_777, seed=3).to(DEVICE, dtype)

    weights = []
    for backend in (ReferenceBackend([shape], dtype, DEVICE), TritonBackend([shape], dtype, DEVICE)):
        packed = backend.pack(tensor, indices)
        dense = packed.decode()
        assert torch.equal(dense, dequantize(tensor, dtype=dtype))
        packed.overwrite(dense, values)
        weights.append(dense)

    assert torch.equal(*weights)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("tokens", [1, 3, 8])
def test_on_a_gpu_a_large_product_is_that_of_float64(tokens: int, dtype: torch.dtype) -> None:
    assert_multiplies((4096, 11008), 45_088, tokens, dtype)
