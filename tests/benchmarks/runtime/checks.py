"""What must hold before anything is timed: the backend computes what the reference computes, at the real shapes.

    dequantise            the same bits
    fused product         |y − y₆₄| ≤ 4 · u · max|y₆₄|      y₆₄ in float64 from the reference's weight, u = ε(dtype) / 2

4: one rounding to the compute dtype, and sums of some thousand products in float32 (in bfloat16 far below it).
"""

from __future__ import annotations

from typing import Any

import torch
from runtime.layer_speed import layer_entry
from runtime.workplace import Workplace
from torch import Tensor

from device_client.model.backends.calibrate import random_weight
from device_client.model.backends.choose import choose_backend
from device_client.model.backends.reference.backend import ReferenceBackend
from device_client.model.backends.weight import Weight
from shared.bundle.config import QuantizedEntry

TOKENS = (1, 3, 8)
POINTS_TOKENS = 40
ROUNDINGS = 4


class WrongResult(Exception):
    """A backend computes something else than the reference: its speed means nothing."""


def check_figures(place: Workplace, tolerance: float = ROUNDINGS) -> dict[str, Any]:
    """Return the largest errors found, in units u of rounding.

    Raises:
        WrongResult: A decoded bit differs, or a product is further off than rounding explains.
    """
    found = {}
    for shape in _shapes(place):
        for form, entry in {"lut": layer_entry(shape), "g128": _grouped(layer_entry(shape))}.items():
            found[f"{shape[0]}x{shape[1]}.{form}"] = _check(place, entry, tolerance)
    place.clean_up()
    return {"largest_error_in_units_of_rounding": found, "tolerance": tolerance}


def _shapes(place: Workplace) -> list[tuple[int, int]]:
    config = place.scale.config(1)
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    return [(hidden, hidden), (wide, hidden), (hidden, wide)]


def _grouped(entry: QuantizedEntry) -> QuantizedEntry:
    return entry.model_copy(update={"codebook": "none", "group_size": 128, "has_bias": True})


def _check(place: Workplace, entry: QuantizedEntry, tolerance: float) -> float:
    dtype, device = place.scale.dtype, place.device
    backend = choose_backend(place.options(), [entry], dtype, device).backend
    reference = ReferenceBackend([entry.shape], dtype, device)
    made = random_weight(entry, device)
    weight = backend.pack(*made)
    right = reference.pack(*made).decode()
    if not torch.equal(weight.decode(), right):
        raise WrongResult(f"{backend.name} decodes {entry.shape}, {entry.codebook}, to other bits than the reference")
    generator = torch.Generator(device).manual_seed(1)
    values = torch.randn(made[1].numel(), device=device, generator=generator).to(dtype)
    right.view(-1)[made[1]] = values
    errors = [_rounding_units(weight, values, _inputs(entry, tokens, generator, dtype), right) for tokens in TOKENS]
    if weight.products != "library":
        errors.append(_points_rounding_units(weight, values, _inputs(entry, POINTS_TOKENS, generator, dtype), right))
    if not max(errors) <= tolerance:
        raise WrongResult(f"{backend.name}'s own product of {entry.shape} is off by {max(errors):.1f} roundings")
    return max(errors)


def _inputs(entry: QuantizedEntry, tokens: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    return torch.randn(tokens, entry.shape[1], device=generator.device, generator=generator).to(dtype)


def _rounding_units(weight: Weight, values: Tensor, inputs: Tensor, dense: Tensor) -> float:
    return _units(weight.multiply_few(inputs, values, None), inputs, dense)


def _points_rounding_units(weight: Weight, values: Tensor, inputs: Tensor, dense: Tensor) -> float:
    """Return the error at the second of two points: the first one's values must be gone."""
    both = torch.stack([torch.zeros_like(values), values])
    outputs = weight.multiply(torch.stack([inputs, inputs]), both, None)
    return _units(outputs[1], inputs, dense)


def _units(outputs: Tensor, inputs: Tensor, dense: Tensor) -> float:
    exact = inputs.double() @ dense.double().T
    error = (outputs.double() - exact).abs().max()
    return float(error / exact.abs().max() / (torch.finfo(inputs.dtype).eps / 2))
