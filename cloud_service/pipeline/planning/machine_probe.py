"""Measures the machine that a plan is for: budgets, what the process uses already, and rates.

    budget      the smallest of: the setting; of an accelerator what is free or this process's already; of main memory
                what is free or this process's already, and the limit of every cgroup that the process is in
    rates       a matrix product, a copy, a flushed file and a small quantisation, some hundred milliseconds in all

Rates only rank the ways to run and tell a person how long it takes; they never change the bundle. The probe also loads
the mathematical libraries, so what they take is in the baseline. Knows nothing about models.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from cloud_service.host_memory import cgroup_limits
from cloud_service.memory_budget import MemoryBudget
from cloud_service.pipeline.planning.peak_memory import CONTEXT_BYTES
from cloud_service.pipeline.planning.workload import Machine, Rates
from cloud_service.pipeline.quantizers.quantize import quantize
from shared.api import QuantizerSpec
from shared.durable_files import disk_errors
from shared.errors import InvalidRequest
from shared.process_memory import process_bytes

LIBRARIES_BYTES = 440 << 20
"""What a process holds that has imported torch, transformers, a model's class and a tokenizer, and used them once."""

_MEMINFO = Path("/proc/meminfo")
_COPY_BYTES = 64 << 20
_FILE_BYTES = 16 << 20
_PROBE_ROWS, _PROBE_COLUMNS = {"cpu": 16, "cuda": 1024}, 4096
_MATRIX = {"cpu": 1024, "cuda": 8192}
_REPEATS = 3


def probe_machine(
    *,
    device: str | None = None,
    budget: MemoryBudget,
    folder: Path,
    quantizer: QuantizerSpec | None,
) -> Machine:
    """Return what may be used and how fast it is.

    Args:
        device: Torch device; None means all CUDA devices where there are any, else the CPU.
        budget: What may be used.
        folder: An existing folder on the workspace's disk.
        quantizer: The quantiser to time; None times none.

    Raises:
        InvalidRequest: The device does not exist.
        DiskError: The folder cannot be written.
    """
    accelerators = accelerator_indices(device)
    compute = torch.device("cuda", accelerators[0]) if accelerators else torch.device("cpu")
    available = available_host_bytes()
    rates = _measure_rates(compute, folder, quantizer)
    usable = [_usable_accelerator_bytes(index) for index in accelerators]
    return Machine(
        accelerator_budgets=tuple(min(count, budget.max_accelerator_bytes or count) for count in usable),
        host_budget=min(budget.max_host_bytes or available, available),
        host_baseline=max(process_bytes()[0], LIBRARIES_BYTES),
        rates=rates,
    )


def accelerator_indices(device: str | None) -> tuple[int, ...]:
    """Return the indices of the accelerators that a device name means: all for None and ``cuda``, none for ``cpu``.

    Raises:
        InvalidRequest: The device does not exist, or is neither a CPU nor CUDA.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device is None:
        return tuple(range(count))
    try:
        named = torch.device(device)
    except RuntimeError as error:
        raise _no_device(device, count) from error
    if named.type == "cpu" and not named.index:
        return ()
    if named.type != "cuda" or count <= (named.index or 0):
        raise _no_device(device, count)
    return tuple(range(count)) if named.index is None else (named.index,)


def available_host_bytes() -> int:
    """Return the main memory that this process may use in all: what it has, and what is free within the limits."""
    used = process_bytes()[0]
    fields = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines()) if _MEMINFO.exists() else {}
    if "MemAvailable" in fields:
        free = int(fields["MemAvailable"].split()[0]) * 1024
    else:
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([used + free, *cgroup_limits()])


def _usable_accelerator_bytes(index: int) -> int:
    """Return what is free of an accelerator and what this process holds of it: its context, and the allocator's."""
    free, total = torch.cuda.mem_get_info(index)
    return min(total, free + torch.cuda.memory_reserved(index) + CONTEXT_BYTES)


def _no_device(device: str, count: int) -> InvalidRequest:
    devices = f"cpu, cuda, or cuda:0 to cuda:{count - 1}" if count else "cpu; there is no CUDA device here"
    return InvalidRequest(f"device {device!r}", needed=devices, param="device")


def _measure_rates(device: torch.device, folder: Path, quantizer: QuantizerSpec | None) -> Rates:
    host = torch.device("cpu")
    host_rate = _copy_rate(host, host)
    return Rates(
        flops_per_second=_product_rate(device),
        device_bytes_per_second=host_rate if device.type == "cpu" else _copy_rate(device, device),
        host_bytes_per_second=host_rate,
        link_bytes_per_second=host_rate if device.type == "cpu" else _copy_rate(device, host) / 2,
        disk_bytes_per_second=_disk_rate(folder),
        quantized_weights_per_second=math.inf if quantizer is None else _quantizer_rate(device, quantizer),
    )


def _product_rate(device: torch.device) -> float:
    size, dtype = _MATRIX[device.type], torch.bfloat16 if device.type == "cuda" else torch.float32
    left = torch.ones(size, size, dtype=dtype, device=device)
    return 2 * size**3 / _shortest_seconds(lambda: left @ left, device)


def _copy_rate(source: torch.device, target: torch.device) -> float:
    """Return bytes read and written per second, in a copy between buffers that exist."""
    from_, to = (torch.ones(_COPY_BYTES // 4, device=device) for device in (source, target))
    return 2 * _COPY_BYTES / _shortest_seconds(lambda: to.copy_(from_), source)


def _disk_rate(folder: Path) -> float:
    with disk_errors(folder), tempfile.TemporaryFile(dir=folder) as file:
        begin = time.perf_counter()
        file.write(bytes(_FILE_BYTES))
        file.flush()
        os.fsync(file.fileno())
        return _FILE_BYTES / (time.perf_counter() - begin)


def _quantizer_rate(device: torch.device, quantizer: QuantizerSpec) -> float:
    shape = (_PROBE_ROWS[device.type], _PROBE_COLUMNS)
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    importance = torch.ones(shape, device=device)
    return weight.numel() / _shortest_seconds(lambda: quantize(weight, importance, quantizer), device, repeats=1)


def _shortest_seconds(action: Callable[[], object], device: torch.device, repeats: int = _REPEATS) -> float:
    """Return the shortest of several runs, after one to warm up."""
    seconds = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - begin)
    return max(min(seconds[1:]), 1e-9)
