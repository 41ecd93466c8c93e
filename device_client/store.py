"""The local store: which bundle a reference means, opened only after full validation.

A bundle is named ``name:tag`` (``name`` means ``name:latest``) or ``name@sha256:…``; with exactly one bundle in the
store the reference may be left out. Costs one pass over all bytes of the bundle. Knows nothing about the network.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from device_client.settings import Settings
from shared.api import SIGNATURE_SUFFIX
from shared.bundle.digest import check_digest
from shared.bundle.layout import ImageLayout
from shared.bundle.manifest import Descriptor
from shared.bundle.read import Bundle, read_bundle
from shared.durable_files import REFUSALS, disk_errors, make_folder
from shared.errors import DiskError, NotFound
from shared.version import VERSION

DISTRIBUTION = "zo-device"


def client_version() -> tuple[int, int, int]:
    """Return this program's version, for comparison with the version that a bundle asks for."""
    major, minor, patch = (int(part) for part in VERSION.split("."))
    return major, minor, patch


def make_home(settings: Settings) -> None:
    """Make the home folder where it is missing, for its owner alone.

    Raises:
        DiskError: It cannot be made, or it is not ours to use.
    """
    with disk_errors(settings.home), refusals(settings):
        make_folder(settings.home, mode=0o700)
        if not os.access(settings.home, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(settings.home))


@contextlib.contextmanager
def refusals(settings: Settings) -> Iterator[None]:
    """Say what to do where the system refuses a file or folder, whichever command meets it and wherever.

    Raises:
        DiskError: Access is denied, or a file or a loop of links stands where a folder is needed.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in REFUSALS or not isinstance(error.filename, (str, os.PathLike)):
            raise
        path, home = Path(error.filename), settings.home
        needed, remedy = "a file or folder that you may use", "change its owner or permissions"
        elsewhere = "name another one"
        if path.is_relative_to(home) or home.is_relative_to(path):
            needed = f"{home} as a folder that you may read and write, with all in it"
            remedy = f"change the owner or permissions of {home}"
            elsewhere = "set ZO_DEVICE_HOME to another folder"
        if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.ELOOP):
            around = (path, *path.parents)
            in_the_way = next((place for place in around if place.is_file() or _is_loop(place)), path)
            remedy = f"move {in_the_way} away"
        raise DiskError(f"{path}: {error.strerror}", needed=needed, next_step=f"{remedy}, or {elsewhere}") from error


def _is_loop(path: Path) -> bool:
    """Return whether a link leads to itself."""
    return path.is_symlink() and not path.exists()


def bundle_references(layout: ImageLayout) -> dict[str, Descriptor]:
    """Return the bundles of a layout by ``name:tag``, without the signatures beside them."""
    return {name: found for name, found in layout.references().items() if not name.endswith(SIGNATURE_SUFFIX)}


def full_reference(reference: str) -> str:
    """Return ``name:tag``, with ``latest`` where no tag was given."""
    return reference if ":" in reference.rpartition("/")[2] else f"{reference}:latest"


def resolve_reference(layout: ImageLayout, reference: str | None) -> tuple[str, Descriptor]:
    """Return the full reference and the manifest that it names in a layout.

    Args:
        layout: The store.
        reference: ``name``, ``name:tag``, ``name@sha256:…``, or None for the only bundle.

    Raises:
        NotFound: There is no such bundle, or None was given and there is not exactly one.
        InvalidDigest: The digest is malformed.
    """
    known = bundle_references(layout)
    listing = ", ".join(sorted(known)) or "none"
    if reference is None:
        if len(known) != 1:
            raise NotFound(
                f"{len(known)} bundles in {layout.root}" if known else f"no bundle in {layout.root}",
                needed=f"a reference, one of: {listing}" if known else "one bundle",
                next_step="zo-device list" if known else "zo-device pull",
            )
        return next(iter(known.items()))
    name, at, digest = reference.partition("@")
    if at:
        check_digest(digest)
        held = {full: found for full, found in known.items() if found.digest == digest}
        matching = [full for full in held if full.rpartition(":")[0] == name or full == name]
    else:
        held, matching = known, [full_reference(name)] if full_reference(name) in known else []
    if not matching:
        raise NotFound(
            f"no bundle {reference!r} in {layout.root}",
            needed=f"one of: {listing}",
            next_step=f"zo-device pull {reference}",
        )
    return matching[0], held[matching[0]]


def resolve_bundle(settings: Settings, ref: str | None) -> Bundle:
    """Return the bundle that a reference names in the local store, after validating all of it.

    Raises:
        NotFound: There is no such bundle, or None was given and there is not exactly one.
        IntegrityError: Its bytes are not what was published.
        UpgradeNeeded: It was written for a newer zo-device.
    """
    _, manifest = resolve_reference(settings.store, ref)
    return read_bundle(settings.store, manifest.digest, client_version=client_version())
