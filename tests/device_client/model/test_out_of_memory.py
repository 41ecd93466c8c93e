"""What counts as running out of memory, and that a real shortage on a CPU ends in smaller batches."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from device_client.model.out_of_memory import is_out_of_memory, refusing_to_load
from device_client.tuning.smaller_batches import MicroBatch, with_smaller_batches
from shared.errors import ResourceError

CPU_TEXT = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"
)

SHORT_OF_MEMORY = """
import json, resource, sys
import torch
from device_client.tuning.smaller_batches import MicroBatch, with_smaller_batches

reserved = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (reserved + (400 << 20), resource.RLIM_INFINITY))
batch, tried = MicroBatch(16), []

def measure():
    tried.append(batch.rows)
    if sys.argv[1] == "python":
        return len(bytearray(batch.rows * (64 << 20))) >> 20
    return torch.empty(batch.rows * (64 << 20), dtype=torch.uint8).numel() >> 20

print(json.dumps([with_smaller_batches(measure, batch), tried]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of the address space are Linux'")
@pytest.mark.parametrize("allocator", ["torch", "python"])
def test_where_a_cpu_grants_no_memory_the_batch_is_halved_until_it_fits(allocator: str) -> None:
    words = [sys.executable, "-c", SHORT_OF_MEMORY, allocator]
    done = subprocess.run(words, check=True, capture_output=True, text=True, timeout=60)

    # 400 MiB: sixteen and eight pieces of 64 MiB are too many.
    assert json.loads(done.stdout) == [4 * 64, [16, 8, 4]]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError(CPU_TEXT),
        RuntimeError("not enough memory: you tried to allocate 5 bytes."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("std::bad_alloc"),
        MemoryError(),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_every_way_of_saying_so_is_understood(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("out of memory"), OSError(28, "No space")])
def test_other_errors_are_left_as_they_are(error: Exception) -> None:
    def fail() -> None:
        raise error

    assert not is_out_of_memory(error)
    with pytest.raises(type(error)) as caught:
        with_smaller_batches(fail, MicroBatch(8))
    assert caught.value is error
    with pytest.raises(type(error)) as caught, refusing_to_load("give up"):
        raise error
    assert caught.value is error


def test_a_single_sequence_that_does_not_fit_is_refused() -> None:
    batch = MicroBatch(3)
    tried = []

    def measure() -> None:
        tried.append(batch.rows)
        raise RuntimeError(CPU_TEXT)

    with pytest.raises(ResourceError, match="one sequence at a time"):
        with_smaller_batches(measure, batch)
    assert tried == [3, 2, 1]


def test_a_model_that_does_not_fit_is_refused_with_a_next_step() -> None:
    with pytest.raises(ResourceError, match="while the model was loaded") as caught, refusing_to_load("close programs"):
        raise RuntimeError(CPU_TEXT)

    assert (caught.value.exit_code, caught.value.next_step) == (8, "close programs")
