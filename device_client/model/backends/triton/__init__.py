"""CUDA by way of Triton: whether its kernels can run here, and what their backend will keep.

Importing this package imports neither triton, which is asked for only where a device can use it, nor torch.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shared.bundle.config import QuantizedEntry
from shared.sensitivity_mask import INDEX_LIMIT

if TYPE_CHECKING:
    import torch

LEAST_CAPABILITY = (8, 0)
"""Ampere, which Triton supports; Jetson Orin is (8, 7)."""


@dataclass(frozen=True, slots=True)
class TritonPlan:
    """What the backend will keep; see ``PlannedBackend``.

    Attributes:
        value_bytes: Bytes of one value in the compute dtype.
    """

    value_bytes: int

    def workspace_bytes(self, shapes: Sequence[tuple[int, int]]) -> int:
        """Return the bytes of the largest weight."""
        return max(rows * columns for rows, columns in shapes) * self.value_bytes

    def position_bytes(self, entry: QuantizedEntry) -> int:
        """Return the bytes of indices of 4 bytes, or of 8 where those are too narrow."""
        return entry.sensitive_count * (4 if entry.element_count <= INDEX_LIMIT else 8)

    def is_decoded(self, _: QuantizedEntry) -> bool:
        """Return True: products of many tokens decode."""
        return True


def why_unavailable(device: torch.device) -> str | None:
    """Return what keeps the Triton kernels from running on ``device``, or None where nothing does.

    Args:
        device: The compute device. A CPU serves under Triton's interpreter only (``TRITON_INTERPRET=1``), for tests.
    """
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed (pip install triton)"
    if device.type == "cpu":
        return None if os.environ.get("TRITON_INTERPRET") == "1" else "its kernels need a CUDA device"
    import torch

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
