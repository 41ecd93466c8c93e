"""The ways in which torch, its CPU libraries and Python say that memory ran out, as one question.

On CUDA ``torch.OutOfMemoryError``; on a CPU a plain RuntimeError of the allocator or of C++ with a certain text, or
Python's MemoryError. That is all that can be caught: a CPU's memory is granted by the page when it is written to, and
where the machine has none left Linux ends the process. What was journalled is kept then too.

No limit of the process (``RLIMIT_DATA``, ``RLIMIT_AS``) stands in for that on a CPU. Limits count what is reserved, not
what is used: thread stacks, arenas and freed pieces, more with every core; and where a thread cannot be started, OpenMP
ends the process. A budget is kept there by the plan, and by the high-water mark that every command reports.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from shared.errors import ResourceError

_TEXTS = ("can't allocate memory", "not enough memory", "out of memory", "std::bad_alloc", "Cannot allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, (RuntimeError, OSError)) and any(text in str(error) for text in _TEXTS)


@contextmanager
def refusing_to_load(next_step: str) -> Iterator[None]:
    """Turn running out of memory inside the ``with`` block into an error that a person can act on.

    Raises:
        ResourceError: Memory ran out.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        raise ResourceError(
            "out of memory while the model was loaded", needed="what zo-device plan predicts", next_step=next_step
        ) from error
