"""``zo-device prune``: delete what no bundle needs.

That is incomplete downloads, blobs that nothing refers to, and what a writer that was killed left behind.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from device_client.console import Console
from device_client.download.pull import partial_folder, sole_writer
from device_client.settings import Settings
from shared.bundle.layout import ImageLayout
from shared.bundle.manifest import MAX_MANIFEST_BYTES, parse_artifact
from shared.bundle.write import UNFINISHED_PREFIX
from shared.byte_sizes import format_bytes
from shared.durable_files import disk_errors

NAME = "prune"
HELP = "delete incomplete downloads, blobs that no bundle refers to, and leftovers of killed commands"

_TEMPORARY_PREFIXES = (UNFINISHED_PREFIX, ".index.json.", ".oci-layout.")
"""How tensors being written, and ``write_atomically``, name what is not finished in the store's folder."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare whether to delete."""
    parser.add_argument("--dry-run", action="store_true", help="only show what would be deleted")


def run(arguments: argparse.Namespace, console: Console, settings: Settings) -> dict[str, Any]:
    """Delete and return what was deleted."""
    layout = settings.store
    if not layout.exists:
        console.say("Nothing to prune.")
        return {"files": 0, "freed_bytes": 0, "is_dry_run": arguments.dry_run}
    begin = time.time()
    with sole_writer(layout), disk_errors(layout.root):
        doomed = [*_unneeded(layout), *_left_behind(layout, before=begin)]
        freed_bytes = sum(_used_bytes(path) for path in doomed)
        for path in [] if arguments.dry_run else doomed:
            _delete(path)
    verb = "would free" if arguments.dry_run else "freed"
    console.say(f"{len(doomed)} files, {verb} {format_bytes(freed_bytes)}")
    return {"files": len(doomed), "freed_bytes": freed_bytes, "is_dry_run": arguments.dry_run}


def _unneeded(layout: ImageLayout) -> Iterator[Path]:
    needed = _needed_digests(layout)
    yield from (path for path in partial_folder(layout).iterdir() if path.name != ".lock")
    for path in layout.blobs.iterdir():
        if f"sha256:{path.name}" not in needed:
            yield path


def _left_behind(layout: ImageLayout, *, before: float) -> Iterator[Path]:
    """Yield temporary files and folders older than this command, the only writer: nobody will finish them."""
    for path in layout.root.iterdir():
        if path.name.startswith(_TEMPORARY_PREFIXES) and path.stat().st_mtime < before:
            yield path


def _used_bytes(path: Path) -> int:
    return sum(part.stat().st_blocks * 512 for part in [path, *path.rglob("*")])


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _needed_digests(layout: ImageLayout) -> set[str]:
    """Return the digests that references reach.

    Raises:
        NotFound: A referenced manifest is absent, so that its blobs cannot be known; nothing may be deleted then.
    """
    needed = set()
    for named in layout.references().values():
        manifest = parse_artifact(layout.read_blob(named.digest, max_bytes=MAX_MANIFEST_BYTES))
        needed |= {named.digest, *(blob.digest for blob in manifest.blobs)}
    return needed
