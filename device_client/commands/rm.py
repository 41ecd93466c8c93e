"""``zo-device rm``: take a bundle out of the store; ``prune`` then frees its bytes."""

from __future__ import annotations

import argparse
from typing import Any

from device_client.console import Console
from device_client.download.pull import sole_writer
from device_client.settings import Settings
from device_client.store import bundle_references, resolve_reference
from shared.bundle.signature import signature_tag

NAME = "rm"
HELP = "remove a bundle from the store (zo-device prune frees its bytes)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the bundle."""
    parser.add_argument("bundle", metavar="BUNDLE", help="name:tag")


def run(arguments: argparse.Namespace, console: Console, settings: Settings) -> dict[str, Any]:
    """Remove the reference, and the signature where no other tag of the name needs it."""
    layout = settings.store
    reference, named = resolve_reference(layout, arguments.bundle)
    name = reference.rpartition(":")[0]
    with sole_writer(layout):
        others = [
            other
            for other, found in bundle_references(layout).items()
            if other != reference and other.rpartition(":")[0] == name and found.digest == named.digest
        ]
        signature = {} if others else {f"{name}:{signature_tag(named.digest)}": None}
        layout.update({reference: None, **signature})
    console.say(f"{reference} is removed. To free its bytes: zo-device prune")
    return {"removed": reference, "digest": named.digest}
