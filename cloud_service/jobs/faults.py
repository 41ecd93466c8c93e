"""Tells faults that come again from crashes that may not: what a job's process does about an unexpected error.

    fault       the same input would end the same way: the job fails at once, and says why
    crash       the machine, the network or another process may be to blame: another attempt may succeed

An unexpected error of the work itself is a fault: a TypeError from odd text in a tokenizer, a panic of a Rust library,
a folder where a file should be. Errors of the system and of network libraries are crashes, but for those that only
depend on names. Costs nothing. Knows nothing about processes.
"""

from __future__ import annotations

import errno
import signal

from shared.errors import ResourceError, ZoError

_TRANSIENT_LIBRARIES = frozenset({"aiohttp", "fsspec", "httpcore", "httpx", "huggingface_hub", "requests", "urllib3"})
_ACCELERATOR_WORDS = ("CUDA error", "CUDA driver", "NCCL", "cuDNN")
_LASTING_SYSTEM_ERRORS = (IsADirectoryError, NotADirectoryError, FileNotFoundError, PermissionError)
_ALLOCATION_WORDS = ("can't allocate memory", "cannot allocate memory", "out of memory")
_LASTING_SIGNALS = {
    signal.SIGABRT: "a library gave up, as when memory cannot be had",
    signal.SIGXFSZ: "a file became longer than a job may write",
    signal.SIGXCPU: "it used more processor time than allowed",
    signal.SIGSYS: "it made a system call that is not allowed",
}
_MAX_REASON = 500
_NEXT_STEP = "check the model, the text and the request; the same input would fail again"


class PreparationFault(ZoError):
    """The work met an error that nobody foresaw, and would meet it again."""


def fault_of(error: BaseException) -> ZoError | None:
    """Return the error that the job fails with, or None where another attempt may succeed."""
    if isinstance(error, ZoError):
        return error
    if isinstance(error, MemoryError) or any(words in str(error).lower() for words in _ALLOCATION_WORDS):
        return ResourceError(
            f"memory could not be had: {reason_of(error)}",
            needed="an input that can be prepared in the memory that a job may use",
            next_step="check the model's tokenizer and configuration, or ask the operator for more memory",
        )
    return PreparationFault(reason_of(error), next_step=_NEXT_STEP) if _is_lasting(error) else None


def fault_of_signal(number: int) -> ZoError | None:
    """Return the error of a job whose process was ended by a signal, or None where another attempt may succeed."""
    name = signal.Signals(number)
    if name not in _LASTING_SIGNALS:
        return None
    return PreparationFault(
        f"the job's process was ended by {name.name}: {_LASTING_SIGNALS[name]}", next_step=_NEXT_STEP
    )


def reason_of(error: BaseException) -> str:
    """Return the error's type and what it says, in one line of bounded length."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words}"[:_MAX_REASON].rstrip(": ")


def _is_lasting(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return isinstance(error, _LASTING_SYSTEM_ERRORS) or error.errno in (errno.ELOOP, errno.EFBIG)
    if not isinstance(error, Exception):
        return type(error).__name__ == "PanicException"  # of Rust libraries; they have no common base in Python
    is_of_network = type(error).__module__.partition(".")[0] in _TRANSIENT_LIBRARIES
    return not is_of_network and not any(words in str(error) for words in _ACCELERATOR_WORDS)
