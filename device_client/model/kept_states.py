"""Hidden states of rows, kept in memory first and then in a file that has no name.

    put    memory while there is room, else the file while there is room, else nowhere
    get    the same bytes again, or None

The file lies in the folder that it is given for, 0600, and loses its name as soon as it is open: nobody else can open
it, and the system gives its space back when the process ends, even by SIGKILL. Where the disk cannot take more, what is
there stays readable and nothing is added. Rows are found by a digest of their tokens. Costs one copy per row, and from
a file one read. Knows nothing about models.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import torch
from torch import Tensor

from shared.durable_files import free_bytes

STATES_FILE = "states.bin"
_DIGEST_BYTES = 16


class _Place(NamedTuple):
    offset: int
    length: int
    dtype: torch.dtype
    device: torch.device


class KeptStates:
    """States by row; a context manager that gives the file's space back.

    Args:
        memory_bytes: What may be held in memory.
        folder: Where the file may lie; None makes none.
        file_bytes: How long the file may get; it never takes more than half of what is free at the beginning.
        announce: Is told why the file cannot be used.
    """

    def __init__(
        self,
        memory_bytes: int,
        folder: Path | None = None,
        file_bytes: int = 0,
        announce: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.memory_bytes = self.file_bytes = 0
        self._memory_limit, self._file_limit = memory_bytes, file_bytes
        self._path = None if folder is None else folder / STATES_FILE
        self._announce = announce
        self._in_memory: dict[bytes, Tensor] = {}
        self._in_file: dict[bytes, _Place] = {}
        self._descriptor: int | None = None
        self._is_closed = False

    def __enter__(self) -> KeptStates:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    @property
    def row_count(self) -> int:
        """How many rows are kept."""
        return len(self._in_memory) + len(self._in_file)

    def get(self, tokens: Sequence[int]) -> Tensor | None:
        """Return a row's states as they were put, or None."""
        key = _key(tokens)
        if key in self._in_memory:
            return self._in_memory[key]
        if key not in self._in_file or self._descriptor is None:
            return None
        place = self._in_file[key]
        data = bytearray(place.length)
        if os.preadv(self._descriptor, [data], place.offset) != place.length:
            return None
        return torch.frombuffer(data, dtype=place.dtype).view(len(tokens), -1).to(place.device)

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Take nothing inside the ``with`` block: for rows that come once."""
        self._is_closed = True
        try:
            yield
        finally:
            self._is_closed = False

    def put(self, tokens: Sequence[int], states: Tensor) -> None:
        """Keep a row's states, (tokens, hidden), where there is room for them."""
        if self._is_closed:
            return
        size = states.numel() * states.element_size()
        if self.memory_bytes + size <= self._memory_limit:
            self._in_memory[_key(tokens)] = states.clone()
            self.memory_bytes += size
        elif self._path is not None and self.file_bytes + size <= self._file_limit:
            self._append(self._path, _key(tokens), states)

    def _append(self, path: Path, key: bytes, states: Tensor) -> None:
        data = states.cpu().contiguous().view(torch.uint8).numpy().tobytes()
        try:
            descriptor = self._open(path)
            written = os.pwrite(descriptor, data, self.file_bytes)
        except OSError as error:
            self._file_limit = 0
            self._announce(f"no more hidden states are kept in {path}, and are computed again: {error.strerror}")
            return
        if written == len(data):
            self._in_file[key] = _Place(self.file_bytes, len(data), states.dtype, states.device)
            self.file_bytes += len(data)

    def _open(self, path: Path) -> int:
        if self._descriptor is None:
            self._file_limit = min(self._file_limit, free_bytes(path.parent) // 2)
            flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
            self._descriptor = os.open(path, flags, 0o600)
            path.unlink()
        return self._descriptor


def _key(tokens: Sequence[int]) -> bytes:
    return hashlib.blake2b(array("q", tokens).tobytes(), digest_size=_DIGEST_BYTES).digest()
