"""``zo-device export``: copy a bundle and what its publisher signed to a folder, for example on a USB stick."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from device_client.console import Console
from device_client.download.copying import export_bundle
from device_client.settings import Settings
from device_client.store import client_version, resolve_reference
from shared.bundle.read import read_bundle
from shared.byte_sizes import format_bytes
from shared.errors import InvalidRequest

NAME = "export"
HELP = "copy a bundle to a folder, for zo-device import on a machine without network"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the bundle and the folder."""
    parser.add_argument("bundle", metavar="BUNDLE", help="name:tag")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="new or empty folder, or an earlier export")


def run(arguments: argparse.Namespace, console: Console, settings: Settings) -> dict[str, Any]:
    """Validate, copy, and return what was copied."""
    folder: Path = arguments.folder
    if folder.exists() and not (folder / "oci-layout").is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise InvalidRequest(
            f"{folder} holds other files",
            needed="a new or empty folder, or an earlier export",
            next_step="name another folder",
        )
    reference, named = resolve_reference(settings.store, arguments.bundle)
    bundle = read_bundle(settings.store, named.digest, client_version=client_version())
    export_bundle(bundle, reference, folder, console)
    size_bytes = bundle.manifest.size_bytes
    console.say(f"{reference} is in {folder} ({format_bytes(size_bytes)}). There: zo-device import {folder}")
    return {"reference": reference, "digest": bundle.digest, "folder": str(folder), "size_bytes": size_bytes}
