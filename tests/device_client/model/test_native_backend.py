"""The compiled kernels equal the codec's reference bit for bit, and its product within float32's rounding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch_threads import torch_threads

from device_client.model.backends.choose import BackendOptions
from device_client.model.backends.native.backend import NativeBackend
from device_client.model.backends.native.build import BuildFailed, built_library
from device_client.model.backends.native.library import KernelLibrary
from device_client.model.backends.native.weight import NativeWeight
from device_client.model.backends.reference.backend import ReferenceBackend
from device_client.model.loader import load_model
from device_client.model.points import write_points
from device_client.model.token_batch import TokenBatch
from device_client.tuning.spsa import perturbed
from shared.quantization.codec import QuantizedTensor, dequantize
from shared.quantization.packing import pack_codes

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# A sum of up to 300 products in float32, and one rounding to the format: relative to the largest output.
LINEAR_TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def random_tensor(rows: int, columns: int, bits: int, form: str, group_size: int, seed: int) -> QuantizedTensor:
    generator = torch.Generator().manual_seed(seed)

    def halves(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).half()

    codes = pack_codes(torch.randint(0, 1 << bits, (rows, columns), generator=generator), bits)
    lut_rows = {"per_row": rows, "shared": 1, "per_row_scaled": rows}.get(form)
    lut = None if lut_rows is None else halves(lut_rows, 1 << bits)
    if form == "per_row":
        return QuantizedTensor(codes, columns, bits, lut=lut)
    groups = (rows, -(-columns // group_size))
    bias = halves(*groups) if form in ("uniform", "per_row_scaled") else None
    return QuantizedTensor(codes, columns, bits, lut=lut, scale=halves(*groups), bias=bias, group_size=group_size)


def without_values(backend: NativeBackend, tensor: QuantizedTensor) -> NativeWeight:
    return backend.pack(tensor, torch.empty(0, dtype=torch.int64))


shapes_and_forms = given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 40) | st.integers(120, 300),
    bits=st.sampled_from([2, 3, 4, 4, 4, 8]),
    form=st.sampled_from(["per_row", "shared", "uniform", "scale_only", "per_row_scaled"]),
    group_size=st.sampled_from([1, 5, 8, 16, 24, 32, 48, 64, 128, 256]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**16),
)


@settings(max_examples=150, deadline=None)
@shapes_and_forms
def test_every_form_decodes_bit_exactly(
    library: KernelLibrary, rows: int, columns: int, bits: int, form: str, group_size: int, dtype: torch.dtype,
    seed: int,
) -> None:  # fmt: skip
    tensor = random_tensor(rows, columns, bits, form, group_size, seed)
    backend = NativeBackend(library, [(rows, columns)], dtype)

    dense = without_values(backend, tensor).decode()

    assert dense.dtype == dtype
    assert torch.equal(dense, dequantize(tensor, dtype=dtype))


@settings(max_examples=150, deadline=None)
@shapes_and_forms
def test_the_fused_product_equals_the_dense_one_with_replaced_values(
    library: KernelLibrary, rows: int, columns: int, bits: int, form: str, group_size: int, dtype: torch.dtype,
    seed: int,
) -> None:  # fmt: skip
    tensor = random_tensor(rows, columns, bits, form, group_size, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    indices = (torch.rand(rows * columns, generator=generator) < 0.1).nonzero().flatten()
    values = torch.randn(len(indices), generator=generator).to(dtype)
    bias = torch.randn(rows, generator=generator).to(dtype) if seed % 2 else None
    inputs = torch.randn(1 + seed % 11, columns, generator=generator).to(dtype)
    backend = NativeBackend(library, [(rows, columns)], dtype)
    exact = dequantize(tensor).double()
    exact.view(-1)[indices] = values.double()
    expected = inputs.double() @ exact.T + (0 if bias is None else bias.double())

    outputs = backend.pack(tensor, indices).multiply_few(inputs, values, bias)

    assert outputs.dtype == dtype
    # What a sum of both signs loses is measured against what was added up, replaced weights included, and what uniform
    # codes of 8 bits are centred by.
    added = exact.abs() + dequantize(tensor).abs()
    if bits == 8 and tensor.lut is None and tensor.scale is not None:
        added += 128 * tensor.scale.double().abs().repeat_interleave(group_size, 1)[:, :columns]
    size = inputs.double().abs() @ added.T + 1
    assert bool(((outputs.double() - expected).abs() <= LINEAR_TOLERANCE[dtype] * size).all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_float16_codebook_value_is_converted_as_torch_does(library: KernelLibrary, dtype: torch.dtype) -> None:
    every_half = torch.from_numpy(np.arange(1 << 16, dtype=np.uint16).view(np.float16).copy())
    every_half = every_half[~every_half.isnan()]
    lut = torch.cat([every_half, every_half[:14]])[: len(every_half) // 16 * 16].view(-1, 16)
    codes = pack_codes(torch.arange(16).expand(len(lut), 16), 4)
    tensor = QuantizedTensor(codes, 16, 4, lut=lut)
    backend = NativeBackend(library, [tensor.shape], dtype)

    assert torch.equal(without_values(backend, tensor).decode(), lut.float().to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_beyond_the_format_and_below_its_normal_range_round_as_torch_does(
    library: KernelLibrary, dtype: torch.dtype
) -> None:
    scale = torch.tensor([[6e4, 4e3, 1e-3, 3e-7, 6e-8, 0.0]]).half().repeat(5, 1)
    bias = torch.tensor([0.0, 65504.0, -65504.0, 6e-8, 1e-5]).half()[:, None].expand(5, 6).contiguous()
    codes = pack_codes(torch.arange(96).expand(5, 96) % 16, 4)
    tensor = QuantizedTensor(codes, 96, 4, scale=scale, bias=bias, group_size=16)
    backend = NativeBackend(library, [tensor.shape], dtype)

    assert torch.equal(without_values(backend, tensor).decode(), dequantize(tensor, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_are_written_to_their_positions_and_nowhere_else(library: KernelLibrary, dtype: torch.dtype) -> None:
    tensor = random_tensor(6, 40, 4, "per_row", 1, seed=3)
    indices = torch.tensor([0, 39, 40, 123, 239])
    values = torch.tensor([1.5, -2.0, 0.25, 3.0, -0.5]).to(dtype)
    backend = NativeBackend(library, [tensor.shape], dtype)
    weight = backend.pack(tensor, indices)
    expected = dequantize(tensor, dtype=dtype)
    expected.view(-1)[indices] = values

    assert torch.equal(weight.decode(values), expected)

    dense = weight.decode(torch.zeros_like(values))
    weight.overwrite(dense, values)
    assert torch.equal(dense, expected)


@pytest.mark.parametrize("kind", ["native", "reference"])
def test_some_rows_go_with_the_values_of_the_whole_weight(library: KernelLibrary, kind: str) -> None:
    tensor = random_tensor(11, 40, 4, "uniform", 16, seed=6)
    indices = torch.tensor([3, 39, 40, 123, 239, 240, 330, 439])
    values, others = torch.arange(1.0, 9.0), -torch.arange(1.0, 9.0)
    backend = {
        "native": NativeBackend(library, [tensor.shape], torch.float32),
        "reference": ReferenceBackend([tensor.shape], torch.float32, torch.device("cpu")),
    }[kind]
    whole = dequantize(tensor)

    weight = backend.pack(tensor, indices)
    for start, stop in [(0, 3), (3, 8), (8, 9), (9, 11), (0, 11)]:
        rows = slice(start, stop)
        whole.view(-1)[indices] = values
        dense = weight.decode(values, rows)
        assert torch.equal(dense, whole[start:stop])
        whole.view(-1)[indices] = others
        weight.overwrite(dense, others, rows)
        assert torch.equal(dense, whole[start:stop])


def test_the_number_of_threads_changes_no_bit(library: KernelLibrary) -> None:
    """More values than each of the threads fetches ahead of its writing, and rows that no number of them divides."""
    tensor = random_tensor(37, 300, 4, "per_row", 1, seed=4)
    generator = torch.Generator().manual_seed(1)
    indices = (torch.rand(37 * 300, generator=generator) < 0.1).nonzero().flatten()
    assert len(indices) > 32 * 5
    values, others = torch.randn(2, len(indices), generator=generator)
    backend = NativeBackend(library, [tensor.shape], torch.float32)
    weight, inputs = backend.pack(tensor, indices), torch.randn(3, 300, generator=generator)

    def results() -> list[Tensor]:
        product = weight.multiply_few(inputs, values, None)
        decoded = weight.decode(values).clone()
        rewritten = decoded.clone()
        weight.overwrite(rewritten, others)
        return [product, decoded, rewritten]

    found = {}
    for count in (1, 2, 5):
        with torch_threads(count):
            found[count] = results()

    assert all(map(torch.equal, found[1], found[2]))
    assert all(map(torch.equal, found[1], found[5]))


def test_all_weights_share_one_buffer(library: KernelLibrary) -> None:
    tensors = [random_tensor(8, 30, 4, "per_row", 1, 0), random_tensor(3, 7, 2, "uniform", 4, 1)]
    backend = NativeBackend(library, [tensor.shape for tensor in tensors], torch.float32)

    addresses = {without_values(backend, tensor).decode().data_ptr() for tensor in tensors}

    assert len(addresses) == 1
    assert backend.workspace_bytes == 8 * 30 * 4


def batch_of_tokens() -> TokenBatch:
    ids = torch.randint(0, 256, (3, 11), generator=torch.Generator().manual_seed(2))
    return TokenBatch(ids, torch.ones_like(ids), torch.tensor([0, 1, 2]), torch.tensor([10, 3, 7]))


@pytest.mark.parametrize("form", ["per_row", "shared", "uniform"])
@pytest.mark.parametrize("model_type", ["llama", "opt"])
def test_a_models_losses_do_not_depend_on_the_backend(
    case_of: Callable, kernels: Path, model_type: str, form: str
) -> None:
    bundle = case_of(model_type, form).bundle
    reference = load_model(bundle, device="cpu")
    native = load_model(bundle, device="cpu", backend=BackendOptions("native", kernels))
    assert (reference.backend_name, native.backend_name) == ("reference", "native")

    for model in (reference, native):
        model.write_points([model.initial_theta() + 0.1, model.initial_theta() - 0.1])

    assert torch.equal(native.logits(batch_of_tokens()), reference.logits(batch_of_tokens()))


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen3", "opt"])
def test_generation_from_codes_gives_the_tokens_of_the_reference(
    case_of: Callable, kernels: Path, model_type: str
) -> None:
    bundle = case_of(model_type).bundle
    expected = list(load_model(bundle, device="cpu").generate([256, 5, 9], max_new_tokens=20))
    native = load_model(bundle, device="cpu", backend=BackendOptions("native", kernels))
    native.fused_up_to_tokens = 8

    assert list(native.generate([256, 5, 9], max_new_tokens=20)) == expected


def test_kernels_are_compiled_once(tmp_path: Path) -> None:
    told: list[str] = []

    first = built_library(tmp_path / "new" / "folder", told.append)
    second = built_library(tmp_path / "new" / "folder", told.append)

    assert first == second
    assert len(told) == 1
    assert [path.name for path in first.parent.iterdir()] == [first.name]


def test_another_kind_of_cpu_has_kernels_of_its_own(kernels: Path) -> None:
    names = {built_library(kernels, lambda _: None, tuning=tuning).name for tuning in (None, "-march=x86-64")}
    assert len(names) == 2


def test_compiled_kernels_need_no_compiler_any_more(kernels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = built_library(kernels, lambda _: None)
    monkeypatch.setenv("PATH", "")

    assert built_library(kernels, lambda _: None) == library


def test_a_machine_without_a_compiler_is_told_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(BuildFailed, match=r"no C\+\+ compiler"):
        built_library(tmp_path, lambda _: None)


def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "bin" / "c++"
    compiler.parent.mkdir()
    compiler.write_text("#!/bin/sh\necho 'unknown option -std' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(compiler.parent))

    with pytest.raises(BuildFailed, match="fails: unknown option -std"):
        built_library(tmp_path / "kernels", lambda _: None)

    assert list((tmp_path / "kernels").iterdir()) == []


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "kernels").write_text("")

    with pytest.raises(BuildFailed, match="kernels cannot be written"):
        built_library(tmp_path / "kernels", lambda _: None)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 4096, 9001])
def test_points_are_written_to_the_bits_of_plain_torch(library: KernelLibrary, count: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(count)
    theta, *directions = (torch.randn(count, generator=generator) for _ in range(3))
    backend = NativeBackend(library, [(1, 1)], dtype)
    points = perturbed(theta, directions, 1e-3)
    found, expected = torch.empty(4, count, dtype=dtype), torch.empty(4, count, dtype=dtype)

    backend.write_points(points, found)

    write_points(points, expected)
    assert torch.equal(found, expected)


def test_points_that_are_no_sums_or_lie_apart_are_written_too(library: KernelLibrary) -> None:
    apart = torch.randn(20)[::2]
    backend = NativeBackend(library, [(1, 1)], torch.float32)
    out = torch.empty(2, 10)

    backend.write_points([apart, apart + 1], out)
    assert torch.equal(out, torch.stack([apart, apart + 1]))
    backend.write_points(perturbed(apart, [apart], 0.5), out)
    assert torch.equal(out, torch.stack([apart + 0.5 * apart, apart - 0.5 * apart]))
