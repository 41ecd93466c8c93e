"""Figure 9: writing the sensitive values into the weight, or multiplying by them apart, over the number of tokens.

    SparseAdd      W = dequantise(codes); W[index] = value; y = x Wᵀ                                 Equation 26
    SparseAddMM    y = x dequantise(codes)ᵀ + x Sᵀ,  S[index] = value − dequantise(codes)[index]      Equation 24
        fused      in one pass over the codes, S formed on the way; for few tokens
        CSR        a matrix product, then torch's sparse one in float32; S was formed before

    SparseAdd costs k writings whatever the tokens; SparseAddMM k · tokens multiplications: they cross somewhere.

A weight that is multiplied on a matrix unit (bfloat16 on a CPU with AMX) has its values written within that product.

Measured on the seven linear layers of one block, each call on the next copy of its weight, so that none is in a cache.
That S costs nothing where CSR is measured is generous to it. Symbols: k sensitive values of a weight.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from runtime.layer_speed import copies_of, layer_entry
from runtime.stopwatch import Action, Effort, Timing, alternate, as_json
from runtime.workplace import Workplace
from torch import Tensor
from torch.nn import functional

from device_client.model.backends.calibrate import random_weight
from device_client.model.backends.choose import choose_backend
from device_client.model.backends.weight import Weight

FUSED_UP_TO_TOKENS = 256
EFFORT = Effort(seconds=3.0, least_rounds=3, most_rounds=15)


@dataclass(frozen=True, slots=True)
class LayersOfOneShape:
    """A block's layers of one shape.

    Attributes:
        count: How many of them a block has.
        columns: in_features.
        next_weight: Yields one copy after the other, for ever.
        values: Compute dtype (k,).
        correction: S, float32 CSR.
    """

    count: int
    columns: int
    next_weight: Iterator[Weight]
    values: Tensor
    correction: Tensor


def sparse_operation_figures(
    place: Workplace, token_counts: tuple[int, ...], effort: Effort = EFFORT
) -> dict[str, Any]:
    """Return the milliseconds of each way at each number of tokens, and where SparseAdd begins to win."""
    layers = [_layers(place, shape, count) for shape, count in _block_shapes(place).items()]
    found = {}
    for tokens in token_counts:
        timings = alternate(_ways(layers, tokens, place), place.device, effort)
        found[str(tokens)] = as_json(timings) | {"sparse_add_is_faster": _is_add_faster(timings)}
    return {"tokens": found, "crossover_tokens": crossover(found)}


def _block_shapes(place: Workplace) -> dict[tuple[int, int], int]:
    """Return the shapes of q k v o, gate and up, down, and how many there are."""
    config = place.scale.config(1)
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    return {(hidden, hidden): 4, (wide, hidden): 2, (hidden, wide): 1}


def _layers(place: Workplace, shape: tuple[int, int], count: int) -> LayersOfOneShape:
    entry, dtype = layer_entry(shape), place.scale.dtype
    backend = choose_backend(place.options(), [entry], dtype, place.device).backend
    quantized, indices = random_weight(entry, place.device)
    weight = backend.pack(quantized, indices)
    values = torch.ones(indices.numel(), dtype=dtype, device=place.device)
    correction = _correction(weight.decode(), weight, values)
    copies = itertools.cycle(copies_of(backend, quantized, indices, place.scale))
    return LayersOfOneShape(count, shape[1], copies, values, correction)


def _correction(dense: Tensor, weight: Weight, values: Tensor) -> Tensor:
    rows, columns = weight.shape
    indices = weight.positions.to(torch.int64)
    borders = torch.arange(rows + 1, device=indices.device) * columns
    change = values.float() - dense.view(-1)[indices].float()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR", UserWarning)  # torch calls its support a beta
        starts = torch.searchsorted(indices, borders)
        return torch.sparse_csr_tensor(starts, indices % columns, change, (rows, columns), check_invariants=True)


def _ways(layers: list[LayersOfOneShape], tokens: int, place: Workplace) -> dict[str, Action]:
    inputs = {
        layer.columns: torch.ones(tokens, layer.columns, dtype=place.scale.dtype, device=place.device)
        for layer in layers
    }
    ways: dict[str, Callable[[LayersOfOneShape, Tensor], Tensor]] = {"sparse_add": _add, "sparse_addmm_csr": _addmm}
    if tokens <= FUSED_UP_TO_TOKENS:
        ways["sparse_addmm_fused"] = _fused
    return {name: _block(way, layers, inputs) for name, way in ways.items()}


def _block(
    way: Callable[[LayersOfOneShape, Tensor], Tensor], layers: list[LayersOfOneShape], inputs: dict[int, Tensor]
) -> Action:
    def action() -> None:
        for layer in layers:
            for _ in range(layer.count):
                way(layer, inputs[layer.columns])

    return action


def _add(layer: LayersOfOneShape, inputs: Tensor) -> Tensor:
    weight = next(layer.next_weight)
    if weight.products != "library":
        return weight.multiply(inputs[None], layer.values[None], None)[0]
    dense = weight.decode()
    weight.overwrite(dense, layer.values)
    return functional.linear(inputs, dense)


def _addmm(layer: LayersOfOneShape, inputs: Tensor) -> Tensor:
    outputs = functional.linear(inputs, next(layer.next_weight).decode())
    return outputs.add_(torch.sparse.mm(layer.correction, inputs.float().T).T)


def _fused(layer: LayersOfOneShape, inputs: Tensor) -> Tensor:
    return next(layer.next_weight).multiply_few(inputs, layer.values, None)


def _is_add_faster(timings: dict[str, Timing]) -> bool:
    return min(timings, key=lambda name: timings[name].median) == "sparse_add"


def crossover(found: dict[str, Any]) -> int | None:
    """Return the fewest tokens from which SparseAdd is the fastest; None where it is not at the most."""
    faster = [int(tokens) for tokens, one in found.items() if one["sparse_add_is_faster"]]
    slower = [int(tokens) for tokens, one in found.items() if not one["sparse_add_is_faster"]]
    return min((tokens for tokens in faster if tokens > max(slower, default=0)), default=None)
