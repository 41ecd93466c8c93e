"""Chooses the sensitive weights: exactly k largest Fisher values, ties by position.

    m_k = argmax_m ‖m ⊙ ∇F‖²        Definition 3
    k   = round(sparsity · d)        per tensor, or over all of them (``global``)

The k-th largest value is found exactly by two histograms over the bits of the float32 values (non-negative floats are
ordered like their bits), of 256 KiB each however many weights there are, where sorting billions would not fit. Values
above it are taken, values equal to it by tensor order, then index, until there are k. Costs three passes over F: the
upper halves' histogram, the lower halves', the selection. Tensors are gone through one at a time, so they may be loaded
as they are asked for. Knows nothing about how F was estimated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.perturbation import random_generator
from shared.sensitivity_mask import SensitivityMask

Scope = Literal["per_tensor", "global"]
Masks = dict[str, SensitivityMask]

_HALF_BITS = 16
_SURPLUS_DEVIATIONS = 6


def select_largest(
    fisher: Mapping[str, Tensor], sparsity: float, scope: Scope, *, elements: int | None = None
) -> Masks:
    """Return the mask of every tensor: the k largest values of its scope, rank 0 the largest.

    Args:
        fisher: Fisher diagonal (or another measure, such as magnitude), float32, finite and not negative, by tensor
            name in model order; may load each tensor as it is asked for: once per tensor, three times if global.
        sparsity: Share of weights to choose; k is rounded half to even and may be 0 in a tiny tensor.
        scope: Whether k is per tensor or global.
        elements: Number of weights of all tensors together; None counts them, which loads each once more if global.
    """
    if scope == "global":
        whole = sum(values.numel() for values in fisher.values()) if elements is None else elements
        return _select(fisher, sensitive_count(whole, sparsity))
    masks: Masks = {}
    for name, values in fisher.items():
        masks |= _select({name: values}, sensitive_count(values.numel(), sparsity))
    return masks


def select_random(sizes: Mapping[str, int], sparsity: float, scope: Scope, seed: int) -> Masks:
    """Return masks of as many uniformly random weights, in random ranks: the paper's baseline.

    Costs the masks and 8 bytes per weight of the largest tensor.

    Args:
        sizes: Number of elements of every tensor, by name in model order.
        sparsity: Share of weights to choose.
        scope: Whether k is per tensor or global.
        seed: What the choice depends on, and nothing else.
    """
    if scope == "global":
        return _draw_globally(sizes, sensitive_count(sum(sizes.values()), sparsity), seed)
    masks: Masks = {}
    for query, (name, size) in enumerate(sizes.items()):
        drawn = _generator(seed, query).choice(size, sensitive_count(size, sparsity), replace=False)
        order = np.argsort(drawn)
        masks[name] = SensitivityMask(drawn[order].astype(np.int32), order.astype(np.int32))
    return masks


def sensitive_count(elements: int, sparsity: float) -> int:
    """Return k for a scope of ``elements`` weights."""
    return round(sparsity * elements)


def overlap(first: Masks, second: Masks) -> float:
    """Return the share of ``first`` that ``second`` also holds, 0 … 1; 0 for an empty mask."""
    total = sum(len(mask) for mask in first.values())
    common = sum(len(np.intersect1d(mask.indices, second[name].indices)) for name, mask in first.items())
    return common / total if total else 0.0


def gradient_mass(fisher: Mapping[str, Tensor], masks: Masks) -> float:
    """Return Σ F over the mask / Σ F over all weights, 0 … 1."""
    total = covered = 0.0
    for name, values in fisher.items():
        index = torch.from_numpy(masks[name].indices).long().to(values.device)
        total += float(values.sum(dtype=torch.float64))
        covered += float(values.flatten()[index].sum(dtype=torch.float64))
    return covered / total if total else 0.0


def _select(values: Mapping[str, Tensor], count: int) -> Masks:
    threshold, ties = _kth_largest(values, count)
    indices: list[Tensor] = []
    chosen: list[Tensor] = []
    for tensor in values.values():
        flat = tensor.flatten()
        equal = (flat == threshold).nonzero().flatten()[:ties] if ties else flat.new_empty(0, dtype=torch.int64)
        ties -= len(equal)
        above = (flat > threshold).nonzero().flatten()
        indices.append(torch.cat([above, equal]).sort().values)
        chosen.append(flat[indices[-1]].cpu())
    order = torch.sort(torch.cat(chosen), descending=True, stable=True).indices
    rank = torch.empty(len(order), dtype=torch.int64)
    rank[order] = torch.arange(len(order))
    ranks = torch.split(rank, [len(index) for index in indices])
    return {
        name: SensitivityMask(index.cpu().numpy().astype(np.int32), part.numpy().astype(np.int32))
        for name, index, part in zip(values, indices, ranks, strict=True)
    }


def _kth_largest(values: Mapping[str, Tensor], count: int) -> tuple[float, int]:
    """Return the count-th largest value of all tensors, and how many entries equal to it are among the ``count``."""
    if count == 0:
        return float("inf"), 0
    high_counts = torch.zeros(1 << _HALF_BITS, dtype=torch.int64)
    for tensor in values.values():
        high_counts += _histogram(_bits(tensor) >> _HALF_BITS)
    high, left = _bin_of(high_counts, count)
    low_counts = torch.zeros(1 << _HALF_BITS, dtype=torch.int64)
    for tensor in values.values():
        bits = _bits(tensor)
        low_counts += _histogram(bits[bits >> _HALF_BITS == high] & ((1 << _HALF_BITS) - 1))
    low, ties = _bin_of(low_counts, left)
    bits = torch.tensor((high << _HALF_BITS) | low, dtype=torch.int32)
    return float(bits.view(torch.float32)), ties


def _bits(values: Tensor) -> Tensor:
    return values.to(torch.float32).flatten().contiguous().view(torch.int32)


def _histogram(bins: Tensor) -> Tensor:
    return torch.bincount(bins, minlength=1 << _HALF_BITS).cpu()


def _bin_of(counts: Tensor, count: int) -> tuple[int, int]:
    """Return the bin that holds the count-th entry from the top, and how many of the ``count`` lie in it."""
    from_top = counts.flip(0).cumsum(0)
    steps = int(torch.searchsorted(from_top, count))
    above = int(from_top[steps - 1]) if steps else 0
    return len(counts) - 1 - steps, count - above


def _draw_globally(sizes: Mapping[str, int], count: int, seed: int) -> Masks:
    generator = _generator(seed)
    counts = _allotment(np.array(list(sizes.values()), np.int64), count, generator)
    indices = [
        np.sort(generator.choice(size, part, replace=False, shuffle=False)).astype(np.int32)
        for size, part in zip(sizes.values(), counts, strict=True)
    ]
    rank = np.arange(count, dtype=np.int32)
    generator.shuffle(rank)
    ranks = np.split(rank, np.cumsum(counts)[:-1])
    return {name: SensitivityMask(*mask) for name, *mask in zip(sizes, indices, ranks, strict=True)}


def _allotment(sizes: NDArray[np.int64], count: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Return how many of ``count`` uniformly random elements lie in each tensor: multivariate hypergeometric.

    NumPy draws that up to 10^9 elements only. Here every element is taken with a probability at which slightly too many
    are; those are a uniformly random set, and stay one when the surplus is put back at random.
    """
    share = min(1.0, (count + _SURPLUS_DEVIATIONS * math.sqrt(count)) / int(sizes.sum()))
    taken = generator.binomial(sizes, share)
    while (surplus := int(taken.sum()) - count) < 0:
        taken = generator.binomial(sizes, share)
    put_back = generator.choice(count + surplus, surplus, replace=False, shuffle=False)
    owners = np.searchsorted(np.cumsum(taken), put_back, side="right")
    return np.asarray(taken - np.bincount(owners, minlength=len(sizes)))


def _generator(seed: int, query: int = 0) -> np.random.Generator:
    # Step 1 keeps these draws apart from the order of the calibration documents, step 0 of the same seed.
    return random_generator(seed, 1, query)
