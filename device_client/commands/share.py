"""``zo-device share``: make a run a small signed thing that others put onto the same bundle.

--as values    the run's values in float16, as their difference to the bundle's: 2 bytes each
--as journal   what each step measured: 22 or 30 bytes a step, from which the very bits of the values are made again
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from device_client.console import Console
from device_client.export.whole_folder import check_absent, whole_folder
from device_client.interrupts import sigterm_as_interrupt
from device_client.settings import Settings
from device_client.store import make_home
from shared.byte_sizes import format_bytes
from shared.durable_files import disk_errors
from shared.errors import InvalidRequest, ZoError

if TYPE_CHECKING:
    from device_client.sharing.documents import FineTune

NAME = "share"
HELP = "make a run a small signed thing, for zo-device apply on another device with the same bundle"
_ROOM_BYTES = 1 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the run, where to and in which form."""
    parser.add_argument("run", metavar="RUN", help="its id or folder")
    parser.add_argument("target", type=Path, metavar="TARGET", help="a new or empty folder, or a new file.tar")
    parser.add_argument(
        "--as", choices=("values", "journal"), default="values", dest="content",
        help="the values, or what each step measured, from which they are made again bit for bit; a journal says more "
        "about the rows (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--name", metavar="NAME", help="what it is called there (default: the model and a digest)")
    parser.add_argument("--yes", action="store_true", help="do not ask whether the numbers may be given away")


def run(arguments: argparse.Namespace, console: Console, settings: Settings) -> dict[str, Any]:
    """Describe, ask, sign, write, and return what was written.

    Raises:
        InvalidRequest: There is something at the target, or the run cannot be shared so.
        ZoError: The answer was no.
    """
    from device_client.export.subject import find_subject
    from device_client.model.backends.choose import BackendOptions
    from device_client.sharing.artifact import write_fine_tune
    from device_client.sharing.describe import content_of, describe_run
    from device_client.sharing.own_key import fingerprint, own_key

    target: Path = arguments.target
    _check_target(target)
    subject = find_subject(settings, arguments.run)
    document = describe_run(subject, arguments.content, _checked_name(arguments.name))
    with sigterm_as_interrupt():
        content = content_of(subject, document, BackendOptions("auto", settings.backends, console.say, None))
    _ask(document, len(content), arguments, console)
    make_home(settings)
    key, is_new = own_key(settings.signing_key)
    if is_new:
        console.say(f"Made a key to sign with: {settings.signing_key}")

    def write(folder: Path) -> str:
        return write_fine_tune(folder, document, content, settings.store.resolve(subject.reference), key)

    size_bytes = len(content) + _ROOM_BYTES
    digest = _write_file(target, write) if target.suffix == ".tar" else _write_folder(target, size_bytes, write)
    written = _size_of(target)
    console.say(f"{document.name} is in {target} ({format_bytes(written)}), signed by {fingerprint(key)}")
    console.say(f"There, with the same bundle: zo-device apply {target} --trusted-key {fingerprint(key)}")
    return {
        "run": document.name,
        "target": str(target),
        "as": document.content,
        "digest": digest,
        "bundle": document.bundle,
        "signer": fingerprint(key),
        "content_bytes": len(content),
        "size_bytes": written,
    }


def _checked_name(name: str | None) -> str | None:
    """Return a name as it was given.

    Raises:
        InvalidRequest: It holds something else than a file's name may.
    """
    from device_client.sharing.documents import RUN_NAME

    if name is not None and not re.fullmatch(RUN_NAME, name):
        raise InvalidRequest(f"--name {name!r}", needed="letters, digits, '.', '_' and '-'", param="name")
    return name


def _ask(document: FineTune, content_bytes: int, arguments: argparse.Namespace, console: Console) -> None:
    """Say what is given away, and ask.

    Raises:
        InvalidRequest: There is nobody to ask.
        ZoError: The answer was no.
    """
    what = (
        f"{document.value_count:,} values"
        if document.content == "values"
        else f"what each of {document.steps_done} steps measured, and {len(document.validations)} validations"
    )
    words = [word for _, word in document.rendering.label_words or []]
    parts = [f"{what} ({format_bytes(content_bytes)})", "the run's settings and results"]
    parts += [f"its template {document.rendering.template!r}"] if document.rendering.template else []
    parts += [f"its labels {', '.join(words[:10])}{', …' if len(words) > 10 else ''}"] if words else []
    console.say(f"This gives away: {'; '.join(parts)}.")
    console.say(
        "These numbers are functions of the rows that the run was tuned on. Rows cannot be read in them directly, but "
        "who has them can test guesses about rows."
    )
    if arguments.yes:
        return
    if not sys.stdin.isatty():
        raise InvalidRequest(
            "nobody to ask whether these numbers may be given away",
            needed="a terminal, or --yes",
            next_step=f"{arguments.typed} --yes",
            param="yes",
        )
    sys.stderr.write("Share it? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise ZoError("not shared: the answer was no", needed="y or yes")


def _check_target(target: Path) -> None:
    if target.suffix != ".tar":
        check_absent(target)
    elif target.exists() or target.is_symlink():
        raise InvalidRequest(
            f"{target} exists already", needed="a new file", next_step="name another one; nothing is ever overwritten"
        )


def _write_folder(target: Path, size_bytes: int, write: Callable[[Path], str]) -> str:
    with whole_folder(target, size_bytes, mode=0o700) as folder:
        return write(folder)


def _write_file(target: Path, write: Callable[[Path], str]) -> str:
    from device_client.sharing.archive import pack

    with sigterm_as_interrupt(), disk_errors(target):
        target.absolute().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.absolute().parent, prefix=f".{target.name}.") as folder:
            layout = Path(folder) / "layout"
            layout.mkdir()
            digest = write(layout)
            pack(layout, Path(folder) / "packed")
            (Path(folder) / "packed").chmod(0o600)
            os.link(Path(folder) / "packed", target)  # fails where there is a file by now
    return digest


def _size_of(target: Path) -> int:
    files = [target] if target.is_file() else [path for path in target.rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in files)
