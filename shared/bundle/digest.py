"""Digests of bytes, files and chunks.

A digest is ``sha256:`` and 64 lower-case hexadecimal digits, nothing else. Hashing costs about 1 s per GB and core
with SHA extensions. Knows nothing about manifests.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from shared.errors import InvalidDigest

CHUNK_BYTES = 16 * 1024 * 1024
"""Default length of a chunk: what a damaged download refetches at least."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_READ_BYTES = 1024 * 1024


def check_digest(digest: str) -> str:
    """Return ``digest`` unchanged.

    Raises:
        InvalidDigest: It is not ``sha256:`` + 64 lower-case hexadecimal digits.
    """
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise InvalidDigest(f"digest {str(digest)[:80]!r}", needed="sha256: followed by 64 lower-case hex digits")
    return digest


def _valid(digest: str) -> str:
    try:
        return check_digest(digest)
    except InvalidDigest as error:
        raise ValueError(str(error)) from error


Digest = Annotated[str, AfterValidator(_valid)]
"""A digest as a field of a message."""


def digest_of_bytes(data: bytes) -> str:
    """Return the digest of ``data``."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def digest_of_file(path: Path) -> str:
    """Return the digest of a file, read once in pieces."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def chunk_digests(path: Path, chunk_bytes: int = CHUNK_BYTES) -> list[str]:
    """Return the digest of each ``chunk_bytes`` long piece of a file; the last one may be shorter."""
    with path.open("rb") as file:
        return ["sha256:" + chunk.hexdigest() for chunk in _hash_chunks(file, chunk_bytes)]


def _hash_chunks(file, chunk_bytes: int) -> Iterator[hashlib._Hash]:  # type: ignore[no-untyped-def]
    while True:
        hasher, left = hashlib.sha256(), chunk_bytes
        while left and (piece := file.read(min(left, _READ_BYTES))):
            hasher.update(piece)
            left -= len(piece)
        if left == chunk_bytes:
            return
        yield hasher
        if left:
            return
