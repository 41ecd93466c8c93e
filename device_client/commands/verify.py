"""``zo-device verify``: hash and validate every byte of a bundle in the store, and its signature."""

from __future__ import annotations

import argparse
from typing import Any

from device_client.console import Console
from device_client.download.copying import read_signature
from device_client.settings import Settings
from device_client.store import client_version, resolve_reference
from shared.bundle.read import read_bundle
from shared.bundle.signature import verify
from shared.byte_sizes import format_bytes

NAME = "verify"
HELP = "hash and validate every byte of a bundle; what is damaged is repaired by pull"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the bundle."""
    parser.add_argument("bundle", nargs="?", metavar="BUNDLE", help="name:tag; may be left out if there is only one")


def run(arguments: argparse.Namespace, console: Console, settings: Settings) -> dict[str, Any]:
    """Verify, and return what was verified.

    Raises:
        IntegrityError: Something is wrong; the message says what.
    """
    layout = settings.store
    reference, named = resolve_reference(layout, arguments.bundle)
    bundle = read_bundle(layout, named.digest, client_version=client_version())
    document = read_signature(layout, reference, named.digest)
    publisher = verify(document, named.digest).fingerprint if document is not None else None
    console.say(
        f"{reference} is intact: {format_bytes(bundle.manifest.size_bytes)}, {len(bundle.manifest.blobs)} blobs"
    )
    console.say(f"Signed by {publisher}" if publisher else "It has no signature.")
    return {
        "reference": reference,
        "digest": named.digest,
        "size_bytes": bundle.manifest.size_bytes,
        "blobs": len(bundle.manifest.blobs),
        "publisher": publisher,
    }
