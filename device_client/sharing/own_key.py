"""The key that this device signs with: one PEM file, for its owner alone, made when it is first needed.

Others compare its fingerprint and accept what it signs by ``zo-device apply --trusted-key``; who loses it shares under
a new one. Knows nothing about what is signed.
"""

from __future__ import annotations

import stat
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from shared.bundle.signature import fingerprint_of
from shared.durable_files import disk_errors, write_atomically
from shared.errors import IntegrityError
from shared.file_lock import exclusive


def own_key(path: Path) -> tuple[Ed25519PrivateKey, bool]:
    """Return the device's key, and whether it was made just now.

    Args:
        path: Its file; the folder is there.

    Raises:
        IntegrityError: The file holds something else, or others can read it.
        DiskError: It cannot be read or written.
    """
    with exclusive(path.with_name(f".{path.name}.lock")), disk_errors(path):
        if path.exists():
            return _read(path), False
        key = Ed25519PrivateKey.generate()
        write_atomically(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), mode=0o600)
        return key, True


def own_fingerprint(path: Path) -> str | None:
    """Return the fingerprint of the device's key, or None where it has none yet.

    Raises:
        IntegrityError: The file holds something else, or others can read it.
    """
    return fingerprint(_read(path)) if path.exists() else None


def fingerprint(key: Ed25519PrivateKey) -> str:
    """Return what others compare."""
    return fingerprint_of(key.public_key().public_bytes_raw())


def _read(path: Path) -> Ed25519PrivateKey:
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise IntegrityError(
            f"{path} can be read by others", needed="a file for its owner alone", next_step=f"chmod 600 {path}"
        )
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _damaged(path) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _damaged(path)
    return key


def _damaged(path: Path) -> IntegrityError:
    return IntegrityError(
        f"{path} does not hold the key that this device signs with",
        needed="an Ed25519 key in PEM form",
        next_step="restore it from a backup, or move it away: the next zo-device share makes another key",
    )
