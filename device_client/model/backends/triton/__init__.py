"""CUDA by way of Triton: kernels, the backend that launches them, and whether they can run here.

Importing this package does not import triton: it is asked for only where a device can use it.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess

import torch

LEAST_CAPABILITY = (8, 0)
"""Ampere, which Triton supports; Jetson Orin is (8, 7)."""


def why_unavailable(device: torch.device) -> str | None:
    """Return what keeps the Triton kernels from running on ``device``, or None where nothing does.

    Args:
        device: The compute device. A CPU serves under Triton's interpreter only (``TRITON_INTERPRET=1``), for tests.
    """
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed (pip install triton)"
    if device.type == "cpu":
        return None if os.environ.get("TRITON_INTERPRET") == "1" else "its kernels need a CUDA device"
    if device.type != "cuda" or not torch.cuda.is_available():
        return f"its kernels need a CUDA device, and {device} cannot be used"
    capability = torch.cuda.get_device_capability(device)
    if capability < LEAST_CAPABILITY:
        found, needed = (".".join(map(str, version)) for version in (capability, LEAST_CAPABILITY))
        return f"the GPU has compute capability {found}; needed {needed}"
    return _trouble_at_start()


def _trouble_at_start() -> str | None:
    """Let Triton build what launches its kernels, and return what went wrong."""
    from triton.runtime import driver

    try:
        driver.active.get_current_target()
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        return (
            f"Triton does not start: {error}; it needs a C compiler and Python's headers (apt install gcc python3-dev)"
        )
    return None
