"""The publisher's signing key: one PEM file, and beside it a record of whose it is and which keys it has replaced.

    signing-key.pem                    the key (PKCS 8), readable by its owner alone
    signing-key.publisher.json         fingerprint of the key that publishes, and the rotations that led to it
    signing-key-<8 hex>.pem.retired    a key that was replaced
    signing-key.pem.next               while a rotation is under way

Devices pin this key, so it is never replaced silently: where the record names a publisher, a missing or different key
is an error that says how to restore it. A rotation is decided when the record is written: killed before, the old key is
still the publisher's; killed after, the next start puts the new key in its place. Knows nothing about bundles.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from shared.bundle.documents import Document, parse_document
from shared.bundle.signature import fingerprint_of
from shared.bundle.signature_artifact import MAX_ROTATIONS
from shared.bundle.statement import SignedRotation, sign_rotation, verify_rotation
from shared.durable_files import disk_errors, make_folder, sync_directory, write_atomically
from shared.errors import Conflict, IntegrityError, InvalidRequest, NotFound

_MAX_RECORD_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A publisher's key.

    Attributes:
        private: What signs.
        rotations: How it came to replace earlier keys, oldest first; to be published beside what it signs.
    """

    private: Ed25519PrivateKey
    rotations: tuple[SignedRotation, ...] = ()

    @property
    def fingerprint(self) -> str:
        """What devices pin."""
        return fingerprint_of(self.private.public_key().public_bytes_raw())


class _Record(Document):
    """Who publishes; rotations are DSSE envelopes."""

    format: Literal[1] = 1
    publisher: str
    rotations: list[str]


def open_signing_key(path: Path, *, publisher_known: str | None = None) -> SigningKey:
    """Return the signing key in ``path``; make one only where nobody has published before.

    The file's mode becomes 0600, whatever it was. Of several processes that make a key at once all return the same one.

    Args:
        path: The PEM file; its record lies beside it.
        publisher_known: Fingerprint of the key that has published, for a folder whose record is missing.

    Raises:
        Conflict: The key that has published is missing, or the file holds another one.
        InvalidRequest: The file does not hold an Ed25519 key.
        DiskError: A file cannot be read, written or made private.
    """
    record = _read_record(path)
    if record is None and publisher_known is None:
        _create_once(path)
    elif record is not None:
        _finish_rotation(path, record)
    rotations = () if record is None else tuple(verify_rotation(text.encode()) for text in record.rotations)
    needed = publisher_known if record is None else record.publisher
    if not path.exists():
        raise _not_the_publishers(path, f"no file {path}", needed)
    key = SigningKey(_load(path), rotations)
    if needed is not None and key.fingerprint != needed:
        raise _not_the_publishers(path, f"{path} holds {key.fingerprint}", needed)
    if record is None and os.access(path.parent, os.W_OK):  # a secret that is mounted read-only needs no record
        _write_record(path, key)
    return key


def has_signing_key(path: Path) -> bool:
    """Whether there is a key in ``path``, or a record that there has to be one."""
    return path.exists() or _record_path(path).exists()


def rotate_signing_key(path: Path, *, now: datetime, keeps_old: bool = True) -> SigningKey:
    """Make a new key, let the old one sign that it takes its place, and return the new one.

    Args:
        path: The PEM file.
        now: The time, which the rotation names.
        keeps_old: Whether the old key stays beside it, as ``…-<8 hex>.pem.retired``.

    Raises:
        NotFound: There is no key yet.
        Conflict: The key is missing or another one; see ``replace_lost_key``.
        DiskError: A file cannot be written; the old key is still the publisher's.
    """
    if not has_signing_key(path):
        raise NotFound(f"no signing key {path}", next_step="zo-cloud serve or zo-cloud prepare makes one")
    old = open_signing_key(path)
    new = Ed25519PrivateKey.generate()
    rotation = sign_rotation(old.private, new, at=now)
    key = SigningKey(new, (*old.rotations, rotation)[-MAX_ROTATIONS:])
    if keeps_old:
        _retire(path, old)
    _put_in_place(path, key)
    return key


def replace_lost_key(path: Path) -> SigningKey:
    """Make a new key that no old one vouches for; devices refuse it until they are given its fingerprint.

    Raises:
        Conflict: The key is not lost.
        DiskError: A file cannot be written.
    """
    record = _read_record(path)
    if record is not None:
        _finish_rotation(path, record)
    if path.exists():
        found = SigningKey(_load(path))
        if record is not None and found.fingerprint == record.publisher:
            raise Conflict(
                f"the signing key {found.fingerprint} is not lost",
                next_step="zo-cloud signing-key rotate, without --lost",
            )
        _retire(path, found)
    key = SigningKey(Ed25519PrivateKey.generate())
    _put_in_place(path, key)
    return key


def _not_the_publishers(path: Path, found: str, needed: str | None) -> Conflict:
    restore = f"restore {path} from its backup, with {_record_path(path).name} beside it"
    return Conflict(
        found,
        needed=f"the signing key {needed}, which devices have pinned",
        next_step=f"{restore}. If it is lost for good: zo-cloud signing-key rotate --lost makes another key, which "
        "devices refuse until they are given its fingerprint",
    )


def _put_in_place(path: Path, key: SigningKey) -> None:
    """Write the new key beside its place, then the record, which decides, then move the key."""
    upcoming = _upcoming(path)
    with disk_errors(path):
        write_atomically(upcoming, _to_pem(key.private), mode=0o600)
        _write_record(path, key)
        upcoming.replace(path)
        sync_directory(path.parent)


def _finish_rotation(path: Path, record: _Record) -> None:
    """Move a new key to its place where a rotation was killed after it had been decided."""
    upcoming = _upcoming(path)
    if upcoming.exists() and SigningKey(_load(upcoming)).fingerprint == record.publisher:
        with disk_errors(path):
            upcoming.replace(path)
            sync_directory(path.parent)


def _retire(path: Path, key: SigningKey) -> None:
    short = key.fingerprint.removeprefix("ed25519:")[:8]
    retired = path.with_name(f"{path.stem}-{short}{path.suffix}.retired")
    with disk_errors(retired):
        write_atomically(retired, _to_pem(key.private), mode=0o600)


def _read_record(path: Path) -> _Record | None:
    record = _record_path(path)
    try:
        with disk_errors(record):
            data = record.read_bytes()
        return parse_document(_Record, data, limit=_MAX_RECORD_BYTES, what=str(record), error=IntegrityError)
    except FileNotFoundError:
        return None
    except IntegrityError as error:
        raise IntegrityError(
            error.found, needed="what zo-cloud wrote there", next_step=f"restore {record} from its backup"
        ) from error


def _write_record(path: Path, key: SigningKey) -> None:
    record = _Record(publisher=key.fingerprint, rotations=[step.envelope.decode() for step in key.rotations])
    with disk_errors(path):
        write_atomically(_record_path(path), record.to_bytes(), mode=0o600)


def _record_path(path: Path) -> Path:
    return path.with_name(f"{path.stem}.publisher.json")


def _upcoming(path: Path) -> Path:
    return path.with_name(f"{path.name}.next")


def _load(path: Path) -> Ed25519PrivateKey:
    with disk_errors(path):
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
        data = path.read_bytes()
    try:
        loaded = load_pem_private_key(data, password=None)
    except (ValueError, TypeError) as error:
        raise InvalidRequest(
            f"{path} does not hold a private key: {error}",
            needed="an Ed25519 key in PEM",
            next_step="restore it from its backup, or name another file",
        ) from error
    if not isinstance(loaded, Ed25519PrivateKey):
        raise InvalidRequest(
            f"{path} holds a {type(loaded).__name__}",
            needed="an Ed25519 key in PEM",
            next_step="restore it from its backup",
        )
    return loaded


def _to_pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _create_once(path: Path) -> None:
    """Make a key, whole or not at all, unless there is one or another process has just made it."""
    if path.exists():
        return
    with disk_errors(path):
        make_folder(path.parent)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # of mode 0600
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(_to_pem(Ed25519PrivateKey.generate()))
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(temporary, path)
        finally:
            Path(temporary).unlink()
        sync_directory(path.parent)
