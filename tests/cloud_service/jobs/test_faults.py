"""Which unexpected errors would come again, and which may not."""

from __future__ import annotations

import errno
import signal

import httpx
import pytest

from cloud_service.jobs.faults import fault_of, fault_of_signal
from shared.errors import DataError


class PanicException(BaseException):  # as Rust libraries name theirs
    pass


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (TypeError("argument 'text': 'str' object cannot be converted"), "TypeError: argument 'text': 'str' object"),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
        (PanicException("index out of bounds"), "PanicException: index out of bounds"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "model.safetensors"), "IsADirectoryError"),
        (PermissionError(errno.EACCES, "Permission denied", "config.json"), "PermissionError"),
        (OSError(errno.ELOOP, "Too many levels of symbolic links"), "Too many levels of symbolic links"),
        (RecursionError(), "RecursionError"),
    ],
)
def test_an_error_of_the_work_itself_is_a_fault_that_says_what_it_is(error: BaseException, message: str) -> None:
    fault = fault_of(error)
    assert fault is not None
    assert fault.slug == "preparation-fault"
    assert message in str(fault)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "Input/output error"),
        ConnectionResetError(),
        TimeoutError(),
        httpx.ReadTimeout("the hub took too long"),
        RuntimeError("CUDA error: unspecified launch failure"),
        KeyboardInterrupt(),
        SystemExit(3),
    ],
)
def test_what_the_machine_or_the_network_may_be_to_blame_for_is_a_crash(error: BaseException) -> None:
    assert fault_of(error) is None


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory")],
)
def test_memory_that_cannot_be_had_is_a_lack_of_resources(error: Exception) -> None:
    fault = fault_of(error)
    assert fault is not None
    assert fault.slug == "resource-error"


def test_an_error_of_ours_stays_what_it_is() -> None:
    error = DataError("no text")
    assert fault_of(error) is error


def test_a_reason_is_one_line_of_bounded_length() -> None:
    fault = fault_of(ValueError("first\nsecond " + "x" * 1000))
    assert fault is not None
    assert fault.found.startswith("ValueError: first second x")
    assert len(fault.found) == 500


def test_signals_that_libraries_and_limits_send_are_faults_and_others_crashes() -> None:
    lasting = [name for name in signal.Signals if fault_of_signal(name) is not None]
    assert sorted(name.name for name in lasting) == ["SIGABRT", "SIGSYS", "SIGXCPU", "SIGXFSZ"]
    assert "SIGABRT" in str(fault_of_signal(signal.SIGABRT))
