"""``zo-device import``: take a bundle from a folder, under the rules that hold for a server."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from device_client.commands.trust_options import acceptance_rules, add_trust_options, describe
from device_client.console import Console
from device_client.download.copying import import_bundle
from device_client.download.trusted_keys import TrustedKeys, import_source
from device_client.settings import Settings
from device_client.store import make_home, resolve_reference
from shared.bundle.layout import ImageLayout
from shared.errors import NotFound

NAME = "import"
HELP = "take a bundle from a folder; it is trusted no more than one from the network"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the folder and whose bundles are accepted."""
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="what export wrote, or any OCI image layout")
    parser.add_argument(
        "bundle", nargs="?", metavar="BUNDLE", help="name:tag or name@sha256:…; may be left out if there is only one"
    )
    add_trust_options(parser)
    parser.add_argument(
        "--allow-expired", action="store_true", help="accept a bundle that its publisher no longer vouches for"
    )


def run(arguments: argparse.Namespace, console: Console, settings: Settings) -> dict[str, Any]:
    """Import and return what is in the store now."""
    source = ImageLayout(arguments.folder)
    if not source.exists:
        raise NotFound(f"{arguments.folder} holds no bundle", needed="a folder that zo-device export wrote")
    make_home(settings)
    reference, manifest = resolve_reference(source, arguments.bundle)
    name = reference.rpartition(":")[0]
    keys = TrustedKeys(settings.trusted_keys)
    rules = acceptance_rules(
        arguments,
        settings,
        import_source(name),
        reference,
        digest=manifest.digest if "@" in (arguments.bundle or "") else None,
        allows_expired=arguments.allow_expired,
    )
    imported = import_bundle(source, reference, manifest, rules, settings.store, keys, console)
    return describe(imported, import_source(name), settings, console)
