"""``zo-device list``: the bundles in the local store, or on the server."""

from __future__ import annotations

import argparse
import threading
from typing import Any

from device_client.commands.server_options import add_server_options, connect
from device_client.console import Console
from device_client.download.reference import normalized_server
from device_client.settings import Settings
from device_client.store import bundle_references
from shared.bundle.layout import ImageLayout
from shared.bundle.manifest import MAX_MANIFEST_BYTES, Descriptor, parse_manifest
from shared.bundle.read import read_config
from shared.byte_sizes import format_bytes
from shared.errors import InvalidRequest, NetworkError, ZoError

NAME = "list"
HELP = "show the bundles in the local store, or on the server"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare which list."""
    parser.add_argument("--remote", action="store_true", help="ask the server instead")
    add_server_options(parser)


def run(arguments: argparse.Namespace, console: Console, settings: Settings) -> dict[str, Any]:
    """Show and return the list."""
    if arguments.remote:
        return _remote(arguments, console, settings)
    layout = settings.store
    bundles = [_entry(layout, reference, named) for reference, named in sorted(bundle_references(layout).items())]
    if not bundles:
        console.say("No bundle is here yet. Next: zo-device pull REF")
    else:
        rows = [
            (entry["reference"], entry["base_model"], _size(entry["size_bytes"]), entry["digest"][:19], entry["fault"])
            for entry in bundles
        ]
        console.table(f"Bundles in {layout.root}", ("Bundle", "Model", "Size", "Digest", ""), rows)
    return {"bundles": bundles}


def _entry(layout: ImageLayout, reference: str, named: Descriptor) -> dict[str, Any]:
    """Describe one bundle from its two documents; a damaged one is listed with its fault."""
    entry: dict[str, Any] = {"reference": reference, "digest": named.digest, "base_model": "", "size_bytes": None}
    try:
        manifest = parse_manifest(layout.read_blob(named.digest, max_bytes=MAX_MANIFEST_BYTES))
        source = read_config(layout, manifest).source
    except ZoError as error:
        return {**entry, "fault": error.found}
    return {**entry, "base_model": source.id, "size_bytes": manifest.size_bytes, "fault": ""}


def _remote(arguments: argparse.Namespace, console: Console, settings: Settings) -> dict[str, Any]:
    if settings.is_offline:
        raise NetworkError("--offline forbids to ask the server", next_step="run it without --offline")
    configured = arguments.server or settings.server
    if configured is None:
        raise InvalidRequest("no server is set", next_step="give --server URL or set ZO_DEVICE_SERVER")
    server = normalized_server(configured)
    with connect(arguments, server, console, settings, stop=threading.Event()) as registry:
        listed = registry.bundles()
    bundles = listed.bundles
    rows = [
        (f"{bundle.name}:{bundle.tag}", bundle.base_model, _size(bundle.size_bytes), bundle.digest[:19])
        for bundle in bundles
    ]
    console.table(f"Bundles on {server}", ("Bundle", "Model", "Size", "Digest"), rows)
    if listed.next is not None:
        console.warn(f"{server} has more bundles than these {len(bundles)}; pull one by its name and tag")
    shown = [bundle.model_dump(mode="json") for bundle in bundles]
    return {"server": server, "bundles": shown, "is_complete": listed.next is None}


def _size(size_bytes: int | None) -> str:
    return "?" if size_bytes is None else format_bytes(size_bytes)
