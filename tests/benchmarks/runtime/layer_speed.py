"""One linear layer, cold: decoding it, multiplying from its codes with and without sensitive values, and its peers.

Every way cycles through so many copies of the weight that none is in a cache when its turn comes; a time is that of
one copy. On CUDA all copies run as one graph: kernels are timed, not their launches.

    sparse share = time(fused, k values) / time(fused, no values) − 1
    limit        = the longer of reading the packed weight and of multiplying (the 16-bit weight for 16-bit layers)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from peers.int4pack import GROUP_SIZE, Int4PackLinear
from peers.seven_b_shapes import BITS
from runtime.limits import Limits
from runtime.scale import Scale
from runtime.stopwatch import Action, Timing, alternate, as_json, ratio, without_launching
from runtime.without_values import without_values
from runtime.workplace import Workplace
from torch import Tensor, nn
from torch.nn import functional

from device_client.model.backends.backend import LinearBackend
from device_client.model.backends.calibrate import random_weight
from device_client.model.backends.choose import choose_backend
from device_client.model.backends.packed_weight import PackedWeight
from shared.bundle.config import QuantizedEntry
from shared.quantization.codec import QuantizedTensor


def layer_figures(place: Workplace, limits: Limits) -> dict[str, Any]:
    """Return the figures of one layer at every number of tokens."""
    scale = place.scale
    layer = ColdLayer.make(place)
    figures = {str(tokens): _figures(layer, place, tokens, limits) for tokens in scale.layer_tokens}
    del layer
    place.clean_up()
    return {"shape": list(scale.layer_shape), "tokens": figures}


@dataclass(frozen=True, slots=True)
class ColdLayer:
    """Copies of one layer in every form.

    Attributes:
        packed: Packed copies with their sensitive values.
        dense_only: The same without any, over the same codes.
        values: Compute dtype (k,).
        plain: 16-bit copies.
        int4pack: torch's own; empty but on a CPU.
    """

    packed: list[PackedWeight]
    dense_only: list[PackedWeight]
    values: Tensor
    plain: list[Tensor]
    int4pack: list[nn.Module]

    @classmethod
    def make(cls, place: Workplace) -> ColdLayer:
        """Make the copies; all hold the same weight."""
        scale, device = place.scale, place.device
        entry = layer_entry(scale.layer_shape)
        backend = choose_backend(place.options(), [entry], scale.dtype, device).backend
        quantized, indices = random_weight(entry, device)
        plain = backend.pack(quantized, indices).decode().clone()
        packed = copies_of(backend, quantized, indices, scale)
        return cls(
            packed,
            [without_values(weight) for weight in packed],
            torch.ones(indices.numel(), dtype=scale.dtype, device=device),
            [plain.clone() for _ in range(_count(plain.nbytes, scale))],
            _int4pack_copies(plain, scale) if device.type == "cpu" else [],
        )


def layer_entry(shape: tuple[int, int], sparsity: float = 0.001) -> QuantizedEntry:
    """Return the description of a weight with a codebook for each row."""
    return QuantizedEntry(
        name="layer.weight",
        shape=shape,
        blob="block-0000.safetensors",
        bits=BITS,
        codebook="per_row",
        group_size=None,
        has_bias=False,
        sensitive_count=max(1, round(sparsity * shape[0] * shape[1])),
        relative_error=0.0,
        weighted_relative_error=0.0,
    )


def copies_of(backend: LinearBackend, quantized: QuantizedTensor, indices: Tensor, scale: Scale) -> list[PackedWeight]:
    """Return so many packed copies of a weight that no cache holds them."""
    copies = _count(sum(part.nbytes for part in quantized.parts.values()), scale)
    return [backend.pack(_copy_of(quantized), indices.clone()) for _ in range(copies)]


def _copy_of(quantized: QuantizedTensor) -> QuantizedTensor:
    parts: dict[str, Any] = {name: part.clone() for name, part in quantized.parts.items()}
    return replace(quantized, **parts)


def _count(bytes_each: int, scale: Scale) -> int:
    return max(2, scale.cold_bytes // bytes_each)


def _int4pack_copies(plain: Tensor, scale: Scale) -> list[nn.Module]:
    layer = nn.Linear(plain.shape[1], plain.shape[0], bias=False, dtype=plain.dtype)
    layer.weight = nn.Parameter(plain, requires_grad=False)
    bytes_each = plain.numel() // 2 + 4 * plain.numel() // GROUP_SIZE
    return [Int4PackLinear(layer) for _ in range(_count(bytes_each, scale))]


def _figures(layer: ColdLayer, place: Workplace, tokens: int, limits: Limits) -> dict[str, Any]:
    ways = _ways(layer, torch.ones(tokens, place.scale.layer_shape[1], dtype=place.scale.dtype, device=place.device))
    actions = {name: without_launching(_all(run, copies), place.device) for name, (run, copies) in ways.items()}
    timings = {
        name: Timing(tuple(seconds / len(ways[name][1]) for seconds in timing.seconds))
        for name, timing in alternate(actions, place.device, place.scale.effort).items()
    }
    least = _least_seconds(layer, tokens, limits)
    return {
        "times": as_json(timings),
        "limit_ms": {name: 1e3 * seconds for name, seconds in least.items()},
        "over_limit": {name: timings[name].median / seconds for name, seconds in least.items()},
        "sparse_share": ratio(timings["fused"], timings["fused_dense_part"])["median"] - 1,
        "speedup": {
            name: ratio(timings[name], timings["fused"]) for name in ("plain", "int4pack", "decoded") if name in timings
        },
    }


_Way = tuple[Callable[[Any], object], list[Any]]


def _ways(layer: ColdLayer, inputs: Tensor) -> dict[str, _Way]:
    values, none = layer.values, layer.values[:0]

    def decoded(weight: PackedWeight) -> Tensor:
        dense = weight.decode()
        weight.overwrite(dense, values)
        return functional.linear(inputs, dense)

    ways: dict[str, _Way] = {
        "dequantize": (lambda weight: weight.decode(), layer.packed),
        "decoded": (decoded, layer.packed),
        "fused": (lambda weight: weight.multiply_few(inputs, values, None), layer.packed),
        "fused_dense_part": (lambda weight: weight.multiply_few(inputs, none, None), layer.dense_only),
        "plain": (lambda weight: functional.linear(inputs, weight), layer.plain),
    }
    if layer.int4pack:
        ways["int4pack"] = (lambda module: module(inputs), layer.int4pack)
    return ways


def _all(run: Callable[[Any], object], copies: Iterable[Any]) -> Action:
    def action() -> None:
        for copy in copies:
            run(copy)

    return action


def _least_seconds(layer: ColdLayer, tokens: int, limits: Limits) -> dict[str, float]:
    weight = layer.packed[0]
    rows, columns = weight.shape
    packed_bytes = sum(part.nbytes for part in weight.quantized.parts.values()) + weight.positions.nbytes
    flops, dense_bytes = 2.0 * tokens * rows * columns, layer.plain[0].nbytes
    return {
        "dequantize": limits.seconds(flops=0.0, bytes_read=packed_bytes),
        "decoded": limits.seconds(flops=flops, bytes_read=packed_bytes),
        "fused": limits.seconds(flops=flops, bytes_read=packed_bytes + layer.values.nbytes),
        "plain": limits.seconds(flops=flops, bytes_read=dense_bytes),
    }
