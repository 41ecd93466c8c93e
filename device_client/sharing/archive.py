"""An image layout in one tar file, and back.

A tar file comes from somebody else: of it only regular files of an image layout's names are taken, each below a bound,
and nothing else is written. Knows nothing about fine-tunes.
"""

from __future__ import annotations

import re
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shared.errors import IntegrityError, LimitExceeded, NotFound

_MEMBER = re.compile(r"(?:\./)?(oci-layout|index\.json|blobs/sha256/[0-9a-f]{64})")
MAX_ARCHIVE_BYTES = 4 << 30
_MAX_MEMBERS = 64


def pack(folder: Path, file: Path) -> None:
    """Write all files of an image layout to a new tar file; the same files give the same bytes."""
    with tarfile.open(file, "x:") as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            member = tarfile.TarInfo(path.relative_to(folder).as_posix())
            member.size = path.stat().st_size
            with path.open("rb") as content:
                archive.addfile(member, content)


@contextmanager
def unpacked(source: Path) -> Iterator[Path]:
    """Yield the folder of an image layout: ``source`` itself, or what a tar file holds, for as long as it is needed.

    Raises:
        NotFound: There is neither.
        IntegrityError: The tar file is damaged or holds something else.
    """
    if source.is_dir():
        yield source
        return
    if not source.is_file():
        raise NotFound(f"no {source}", needed="a folder or tar file that zo-device share wrote")
    with tempfile.TemporaryDirectory() as folder:
        _extract(source, Path(folder))
        yield Path(folder)


def _extract(source: Path, target: Path) -> None:
    fault = IntegrityError(
        f"{source} is not a tar file of an OCI image layout",
        needed="a file that zo-device share wrote",
        next_step="copy it again, or ask who shared it",
    )
    left = MAX_ARCHIVE_BYTES
    (target / "blobs" / "sha256").mkdir(parents=True)
    try:
        with tarfile.open(source, "r:") as archive:
            for number, member in enumerate(archive):
                if member.isdir():
                    continue
                name = _MEMBER.fullmatch(member.name)
                content = archive.extractfile(member) if member.isreg() and not member.issparse() else None
                if name is None or content is None or number >= _MAX_MEMBERS:
                    raise fault
                left -= member.size
                if left < 0:
                    raise LimitExceeded(f"{source} unpacks to more than {MAX_ARCHIVE_BYTES} bytes")
                with (target / name[1]).open("wb") as output:
                    while data := content.read(1 << 20):
                        output.write(data)
    except tarfile.TarError as error:
        raise fault from error
