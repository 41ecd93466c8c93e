"""What the two command lines have in common: wrong calls are errors of ours, and whoever reads may stop reading.

``zo-cloud keys list | head -1`` ends as soon as ``head`` has its line. What is still to be printed then is dropped
without a word and the exit status is that of the command, which has done its work. Costs one system call for each
stream at the end. Knows nothing about commands.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import select
import sys
from collections.abc import Iterator
from typing import NoReturn, TextIO

from shared.errors import InvalidRequest


class CommandParser(argparse.ArgumentParser):
    """Raises usage errors instead of printing them, so that they can be JSON too."""

    def error(self, message: str) -> NoReturn:
        """Raise InvalidRequest."""
        raise InvalidRequest(
            f"{self.prog}: {message}", needed="a call as the help shows", next_step=f"{self.prog} --help"
        )


@contextlib.contextmanager
def dropping_unread_output() -> Iterator[None]:
    """Drop what is printed inside the ``with`` block after nobody reads it any more.

    A pipe of another kind that breaks is still an error.
    """
    try:
        yield
    except BrokenPipeError:
        if not any(map(_is_unread, _open_streams())):
            raise
    finally:
        for stream in _open_streams():
            with contextlib.suppress(BrokenPipeError):
                stream.flush()
            if _is_unread(stream):  # else Python would complain when it flushes at its end
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)


def _open_streams() -> list[TextIO]:
    return list(filter(None, (sys.stdout, sys.stderr)))  # None where the program was started with it closed


def _is_unread(stream: TextIO) -> bool:
    try:
        descriptor = stream.fileno()
    except io.UnsupportedOperation:
        return False
    ends = select.poll()
    ends.register(descriptor, 0)  # POLLERR and POLLHUP are always reported
    return bool(ends.poll(0))
