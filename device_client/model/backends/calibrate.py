"""How fast a backend decodes here, and up to how many tokens its fused product is faster than decoding.

    fused_up_to_tokens = the largest T of ``TOKEN_COUNTS`` such that for it and every smaller one
                         time(layer, fused, T) < time(layer, decoding, T)

Measured on one random weight of the model's largest shape; takes well under a second, and nothing that is computed
depends on it but the speed, and the last bits of generated tokens' logits. Knows nothing about files.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from device_client.model.backends.backend import LinearBackend
from device_client.model.backends.weight import Weight
from shared.bundle.config import QuantizedEntry
from shared.quantization.codec import QuantizedTensor

TOKEN_COUNTS = (1, 2, 4, 8, 16, 32)
METHOD = 7
"""Of measuring; another number makes what was kept invalid."""

_REPEATS = 7


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was measured of one backend.

    Attributes:
        dequantize_seconds: Decoding the weight once.
        fused_up_to_tokens: See above; 0 where the fused product never is the faster way.
    """

    dequantize_seconds: float
    fused_up_to_tokens: int


def calibrate(backend: LinearBackend, entry: QuantizedEntry, dtype: torch.dtype, device: torch.device) -> Calibration:
    """Measure a backend on a random weight in the form and shape of ``entry``."""
    weight = backend.pack(*random_weight(entry, device))
    values = torch.zeros(1, weight.positions.numel(), dtype=dtype, device=device)
    decoding = _least_seconds(lambda: weight.decode(values[0]), device)
    fused_up_to = 0
    for tokens in TOKEN_COUNTS:
        inputs = torch.ones(1, tokens, entry.shape[1], dtype=dtype, device=device)
        if not _is_fused_faster(weight, values, inputs):
            break
        fused_up_to = tokens
    return Calibration(decoding, fused_up_to)


def random_weight(entry: QuantizedEntry, device: torch.device) -> tuple[QuantizedTensor, Tensor]:
    """Return a weight of that form and shape, and ascending flat positions of as many sensitive values."""
    generator = torch.Generator().manual_seed(0)
    parts: dict[str, Tensor] = {}
    for part, (stored, shape) in entry.part_shapes.items():
        if stored == "U8":
            parts[part] = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device)
        else:
            parts[part] = torch.randn(shape, generator=generator).to(device, torch.float16)
    quantized = QuantizedTensor(in_features=entry.shape[1], bits=entry.bits, group_size=entry.group_size, **parts)
    indices = torch.linspace(0, max(entry.element_count - 1, 0), entry.sensitive_count, dtype=torch.float64)
    return quantized, indices.to(device, torch.int64)


def _is_fused_faster(weight: Weight, values: Tensor, inputs: Tensor) -> bool:
    decoded = _least_seconds(lambda: weight.multiply(inputs, values, None), inputs.device)
    fused = _least_seconds(lambda: weight.multiply_few(inputs, values[0], None), inputs.device)
    return fused < decoded


def _least_seconds(action: Callable[[], object], device: torch.device) -> float:
    action()
    seconds = []
    for _ in range(_REPEATS):
        _wait_for(device)
        begin = time.perf_counter()
        action()
        _wait_for(device)
        seconds.append(time.perf_counter() - begin)
    return min(seconds)  # other processes only ever add to it, and what is found is kept


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
