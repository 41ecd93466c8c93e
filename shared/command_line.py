"""What both command lines share: parsers, exit codes, errors as JSON, and readers that stop reading.

Results go to standard output, with ``--json`` as exactly one JSON object, of an error too; what people read goes to
standard error. ``zo-cloud keys list | head -1`` ends as soon as ``head`` has its line: what is still to be printed then
is dropped without a word and the exit status is that of the command, which has done its work. Costs one system call
for each stream at the end. Knows nothing about commands.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import select
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, TextIO

from shared.durable_files import REFUSALS
from shared.errors import DiskError, Interrupted, InvalidRequest, ZoError

EXIT_CODES = (
    (0, "done"),
    (1, "failed in a way no other code names"),
    (2, "wrong call"),
    (3, "key missing, unknown or without the right"),
    (4, "not found"),
    (5, "damaged, forged or too new: nothing was loaded"),
    (6, "network or server failed: try again, what was fetched is kept"),
    (7, "disk full, or a file or folder that may not be used"),
    (8, "memory or GPU does not suffice"),
    (9, "data file or row unusable"),
    (10, "training diverged"),
    (11, "begun otherwise, made from another bundle, or in use by another command"),
    (130, "interrupted: run the same command again"),
)


class CommandParser(argparse.ArgumentParser):
    """Raises usage errors instead of printing them, so that they can be JSON too."""

    _is_mixing = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Refuse what this parser does not know, in its own name: a command's parser knows its help.

        Options may stand between a command's words, also before one that may be left out. A parser of commands that has
        a default for ``default_word`` takes that command where the first word is none.
        """
        words = self._with_default_word(list(sys.argv[1:] if args is None else args))
        if self._is_mixing:  # argparse calls back, for options and words apart
            return super().parse_known_args(words, namespace)
        self._is_mixing = self._can_mix()
        try:
            parse = self.parse_known_intermixed_args if self._is_mixing else super().parse_known_args
            found, unknown = parse(words, namespace)
        finally:
            self._is_mixing = False
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown

    def _can_mix(self) -> bool:
        """Return whether argparse can: it has no way for subcommands, or for words that exclude options."""
        words = [action for action in self._actions if not action.option_strings]
        excluding = [action for group in self._mutually_exclusive_groups for action in group._group_actions]
        return self._subparsers is None and not any(word in excluding for word in words)

    def _with_default_word(self, words: list[str]) -> list[str]:
        default = self.get_default("default_word")
        if default is None or {"-h", "--help"} & set(words):
            return words
        first = next((word for word in words if not word.startswith("-")), None)
        names = {name for action in self._actions if isinstance(action.choices, dict) for name in action.choices}
        return words if first in names else [default, *words]

    def error(self, message: str) -> NoReturn:
        """Raise InvalidRequest."""
        raise InvalidRequest(
            f"{self.prog}: {message}", needed="a call as the help shows", next_step=f"{self.prog} --help"
        )


def program_parser(
    name: str, description: str, *, parents: Sequence[argparse.ArgumentParser] = ()
) -> argparse.ArgumentParser:
    """Return a program's parser, whose help ends with the exit codes."""
    return CommandParser(
        prog=name,
        description=description,
        epilog="exit codes:\n" + "\n".join(f"  {code:>3}  {meaning}" for code, meaning in EXIT_CODES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=parents,
    )


def run_program(
    run: Callable[[Sequence[str]], int],
    words: Sequence[str],
    *,
    show_error: Callable[[str], None],
    debug_variable: str,
    is_debugging: Callable[[], bool],
) -> int:
    """Run a command and return its exit code; it is 0 where nobody wants to read the rest of the output.

    Args:
        run: Parses the words, does what they say and returns the exit code.
        words: The command line, without the program's name.
        show_error: Shows an error to people.
        debug_variable: Environment variable that shows where an unexpected error was raised.
        is_debugging: Whether it is set; asked only then.
    """
    with dropping_unread_output():
        try:
            return run(words)
        except BrokenPipeError:
            raise
        except ZoError as error:
            failure, kind = error, error.slug
        except KeyboardInterrupt:
            failure = Interrupted("interrupted", next_step="run the same command again to continue")
            kind = failure.slug
        except Exception as error:
            if is_debugging():
                show_error("".join(traceback.format_exception(error)))
            failure = _described(error, debug_variable)
            kind = "unexpected" if type(failure) is ZoError else failure.slug
        show_error(str(failure))
        if "--json" in words:
            described = {"found": failure.found, "needed": failure.needed, "next_step": failure.next_step}
            with dropping_unread_output():
                print_json({"error": {"type": kind, **described, "param": failure.param}})
        return failure.exit_code
    return 0


def print_json(result: dict[str, Any]) -> None:
    """Print the one JSON object of a command."""
    sys.stdout.write(json.dumps(result) + "\n")


def _described(error: Exception, debug_variable: str) -> ZoError:
    """Return an error that nobody expected as one of ours; its text may quote a token or a person's data."""
    if isinstance(error, OSError) and error.errno in REFUSALS and error.filename is not None:
        return DiskError(
            f"{error.filename}: {error.strerror}",
            needed="a file or folder that you may use",
            next_step="change its owner or permissions, or name another one",
        )
    return ZoError(f"unexpected {type(error).__name__}", next_step=f"set {debug_variable}=1 to see where")


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
