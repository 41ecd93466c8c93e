"""The compiled kernels of one token against transformers' modules and torch's attention."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch_threads import torch_threads
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from device_client.model.backends.native.backend import NativeBackend
from device_client.model.backends.native.library import KernelLibrary
from device_client.model.backends.native.token_kernels import NativeTokenKernels
from device_client.model.backends.token_kernels import Factor, KeptHeads, TokenHeads
from shared.quantization.codec import QuantizedTensor
from shared.quantization.packing import pack_codes

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def random(*shape: int, dtype: torch.dtype, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture
def kernels_of_token(library: KernelLibrary) -> NativeTokenKernels:
    return NativeTokenKernels(library)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (7,), (32,), (3, 40), (2, 4096)])
def test_rows_are_normed_as_by_transformers(
    kernels_of_token: NativeTokenKernels, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    module = LlamaRMSNorm(shape[-1], eps=1e-5)
    module.weight.data = random(shape[-1], dtype=dtype, seed=2)
    inputs = random(*shape, dtype=dtype)
    expected = module(inputs)
    out = torch.empty_like(inputs)

    kernels_of_token.norm(inputs, module.weight, 1e-5, out)
    kernels_of_token.norm(inputs, module.weight, 1e-5, inputs)  # in place

    assert torch.equal(out, inputs)
    # The mean may differ in its last bits, and a rounding with it.
    torch.testing.assert_close(out, expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-7)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "key_heads", "size"), [(1, 1, 2), (4, 4, 8), (6, 2, 40), (32, 8, 128)])
@pytest.mark.parametrize(("first", "position"), [(0, 0), (0, 5), (3, 17)])
def test_a_token_attends_as_by_torch(
    kernels_of_token: NativeTokenKernels, heads: int, key_heads: int, size: int, first: int, position: int,
    dtype: torch.dtype,
) -> None:  # fmt: skip
    query, key, value = (random(count, size, dtype=dtype, seed=count) for count in (heads, key_heads, key_heads))
    keys, values = (random(key_heads, 20, size, dtype=dtype, seed=seed) for seed in (3, 4))
    cosines, sines = random(size // 2, dtype=dtype).repeat(2), random(size // 2, dtype=dtype, seed=5).repeat(2)
    rotated = apply_rotary_pos_emb(
        query[None, :, None].clone(), key[None, :, None].clone(), cosines[None, None], sines[None, None]
    )
    seen = [buffer.clone() for buffer in (keys, values)]
    seen[0][:, position], seen[1][:, position] = rotated[1][0, :, 0], value
    attended = [buffer[:, first : position + 1].repeat_interleave(heads // key_heads, 0) for buffer in seen]
    expected = functional.scaled_dot_product_attention(
        rotated[0][0].double(), attended[0].double(), attended[1].double(), scale=0.3
    )[:, 0]

    with torch_threads(3):
        found = kernels_of_token.attend(
            TokenHeads(query, key, value, cosines, sines), KeptHeads(keys, values, first, position), 0.3
        )

    torch.testing.assert_close(found.view(heads, size).double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=2e-5)
    assert torch.equal(keys, seen[0])  # the rotated key to the last bit, and nothing else
    assert torch.equal(values, seen[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [(5,), (7, 3, 3), (32, 16, 16), (48, 160), (32, 7)])
def test_products_side_by_side_are_those_of_each_weight(
    library: KernelLibrary, rows: tuple[int, ...], dtype: torch.dtype
) -> None:
    backend = NativeBackend(library, [(max(rows), 256)], dtype)
    factors = []
    for seed, count in enumerate(rows):
        generator = torch.Generator().manual_seed(seed)
        codes = pack_codes(torch.randint(0, 16, (count, 256), generator=generator), 4)
        tensor = QuantizedTensor(codes, 256, 4, lut=random(count, 16, dtype=torch.float16, seed=seed))
        indices = torch.arange(seed, count * 256, 37)
        bias = random(count, dtype=dtype, seed=seed) if seed % 2 else None
        factors.append(Factor(backend.pack(tensor, indices), random(len(indices), dtype=dtype), bias))
    product = backend.token_kernels.side_by_side(factors)

    for seed, threads in [(8, 1), (9, 2), (10, 5)]:
        inputs = random(256, dtype=dtype, seed=seed)
        with torch_threads(threads):
            found = [output.clone() for output in product(inputs)]
        expected = [each.weight.multiply_few(inputs, each.values, each.bias) for each in factors]
        assert all(map(torch.equal, found, expected))


def test_products_follow_values_that_are_overwritten(library: KernelLibrary) -> None:
    backend = NativeBackend(library, [(16, 128)], torch.float32)
    codes = pack_codes(torch.randint(0, 16, (16, 128)), 4)
    weight = backend.pack(QuantizedTensor(codes, 128, 4, lut=random(16, 16, dtype=torch.float16)), torch.tensor([5]))
    values, inputs = torch.ones(1), random(128, dtype=torch.float32)
    product = backend.token_kernels.side_by_side([Factor(weight, values, None)])
    before = product(inputs)[0].clone()

    weight.decode(torch.tensor([7.0]))  # the same weight with others in between
    values.fill_(3.0)

    torch.testing.assert_close(product(inputs)[0] - before, torch.eye(16)[0] * 2 * inputs[5], rtol=1e-4, atol=1e-4)
