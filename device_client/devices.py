"""Devices and number formats: what they are called, how wide they are, and which is taken where none is named.

    device    cpu · cuda · cuda:N                 none named: CUDA where there is one
    format    float32 · float16 · bfloat16        none named: float16 on CUDA, float32 on a CPU

Float16 products are 11 × slower than float32 on a CPU. bfloat16 is never taken unasked: at ε = 1e-4 it loses 33–80 % of
a perturbation to rounding. Torch is imported only where a device or a format of torch is returned, so that commands
that only name one start quickly. Knows nothing about models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shared.errors import ResourceError

if TYPE_CHECKING:
    import torch

    from device_client.model.cuda import Cuda

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Name of a compute format → bytes of one value."""

DEFAULT_DTYPES = {"cpu": "float32", "cuda": "float16"}
"""Device type → name of the compute format that is taken where none is named."""


def resolve_device(name: str | None, cuda: Cuda | None = None) -> torch.device:
    """Return the device of that name, on CUDA always with its index; None takes CUDA where there is one.

    Args:
        name: ``cpu``, ``cuda``, ``cuda:N`` or None.
        cuda: CUDA; None takes torch's.

    Raises:
        ResourceError: There is no such device.
    """
    import torch

    from device_client.model.cuda import TorchCuda

    cuda = cuda or TorchCuda()
    if name is None:
        name = "cuda" if cuda.device_count() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ResourceError(f"device {name!r}", needed="cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise ResourceError(f"device {name!r}", needed="cpu, cuda or cuda:N")
    if device.type == "cpu":
        return device
    if (device.index or 0) >= cuda.device_count():
        raise ResourceError(
            f"device {name!r}, but torch sees {cuda.device_count()} CUDA devices",
            needed="a CUDA device and a torch build for it",
            next_step="run with --device cpu, or see: zo-device doctor",
        )
    return torch.device("cuda", cuda.current_index() if device.index is None else device.index)


def default_dtype(device: torch.device) -> torch.dtype:
    """Return the format to compute in on a device."""
    return dtype_named(DEFAULT_DTYPES[device.type])


def dtype_named(name: str) -> torch.dtype:
    """Return the format of that name, one of ``DTYPE_BYTES``."""
    import torch

    found: torch.dtype = getattr(torch, name)
    return found


def dtype_name(dtype: torch.dtype) -> str:
    """Return what options, records and results call a compute format, such as ``bfloat16``."""
    return str(dtype).removeprefix("torch.")
