"""What the machine can do at most: bytes read per second, multiplications per second; and the time that follows.

    seconds ≥ max( FLOPs / measured matrix product rate, bytes / measured reading rate )

Both rates are measured with the library calls that are best at it: the fastest of a few runs, as a limit should be.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from runtime.scale import Scale
from runtime.stopwatch import seconds_of

_RUNS = 5


@dataclass(frozen=True, slots=True)
class Limits:
    """Rates of a machine.

    Attributes:
        bytes_per_second: Reading memory that no cache holds.
        flops: Multiplications and additions of a 16-bit matrix product, per second.
        float32_flops: The same in float32.
    """

    bytes_per_second: float
    flops: float
    float32_flops: float

    def seconds(self, *, flops: float, bytes_read: float, is_float32: bool = False) -> float:
        """Return the time below which nothing can do this work."""
        rate = self.float32_flops if is_float32 else self.flops
        return max(flops / rate, bytes_read / self.bytes_per_second)

    def to_json(self) -> dict[str, float]:
        """Return the rates."""
        return asdict(self)


def measure_limits(scale: Scale, device: torch.device) -> Limits:
    """Measure a machine's rates in a few seconds."""
    return Limits(
        _reading_rate(scale.cold_bytes, scale.dtype, device),
        _product_rate(scale.layer_shape, scale.dtype, device),
        _product_rate(scale.layer_shape, torch.float32, device),
    )


def _reading_rate(byte_count: int, dtype: torch.dtype, device: torch.device) -> float:
    """Return the rate of the best of three: a sum, one vector and a few vectors times a large matrix."""
    values = torch.ones(byte_count // 4, dtype=torch.float32, device=device)
    matrix, vector = values.view(-1, 4096), torch.ones(4096, device=device)
    narrow, few = values.view(dtype).view(-1, 4096), torch.ones(4096, 4, dtype=dtype, device=device)
    ways = (values.sum, lambda: torch.mv(matrix, vector), lambda: torch.mm(narrow, few))
    return byte_count / min(_shortest(way, device) for way in ways)


def _product_rate(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> float:
    rows, columns = shape
    generator = torch.Generator(device).manual_seed(0)  # equal values would let a GPU clock higher
    weight = torch.empty(shape, dtype=dtype, device=device).normal_(generator=generator)
    inputs = torch.empty(2048, columns, dtype=dtype, device=device).normal_(generator=generator)
    return 2.0 * 2048 * rows * columns / _shortest(lambda: torch.mm(inputs, weight.T), device)


def _shortest(action: Callable[[], object], device: torch.device) -> float:
    action()
    return min(seconds_of(action, device) for _ in range(_RUNS))
