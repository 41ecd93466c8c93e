"""The options that say which bundles are accepted, and how an accepted one is told; for ``pull`` and ``import``."""

from __future__ import annotations

import argparse
from typing import Any

from device_client.console import Console
from device_client.download.pull import Pulled
from device_client.download.trusted_bundle import AcceptanceRules
from device_client.download.trusted_keys import check_fingerprint
from device_client.settings import Settings
from device_client.store import client_version
from shared.byte_sizes import format_bytes


def add_trust_options(parser: argparse.ArgumentParser) -> None:
    """Declare whose bundles are accepted."""
    parser.add_argument("--trusted-key", metavar="ed25519:…", help="accept this publisher only, and pin it")
    parser.add_argument("--allow-unsigned", action="store_true", help="accept a bundle that has no signature")


def acceptance_rules(
    arguments: argparse.Namespace,
    settings: Settings,
    source: str,
    *,
    digest: str | None = None,
) -> AcceptanceRules:
    """Return the rules that options and settings amount to; pulling and importing add the pins.

    Raises:
        InvalidRequest: The trusted key is malformed.
    """
    required = arguments.trusted_key or settings.trusted_key
    return AcceptanceRules(
        source=source,
        required=check_fingerprint(required) if required else None,
        allows_unsigned=arguments.allow_unsigned,
        digest=digest,
        client_version=client_version(),
    )


def describe(pulled: Pulled, source: str, console: Console) -> dict[str, Any]:
    """Tell people what is in the store now, and return it for ``--json``."""
    if pulled.was_complete:
        console.say(f"{pulled.reference} is up to date; every byte was checked. {pulled.digest}")
    else:
        console.say(f"{pulled.reference} is here and verified: {format_bytes(pulled.size_bytes)}. {pulled.digest}")
    if pulled.publisher is None:
        console.warn("this bundle is not signed")
    elif pulled.is_first_contact:
        console.say(f"First contact with its publisher: {pulled.publisher} is now pinned for {source}")
    return {
        "reference": pulled.reference,
        "digest": pulled.digest,
        "source": source,
        "publisher": pulled.publisher,
        "is_first_contact": pulled.is_first_contact,
        "size_bytes": pulled.size_bytes,
        "fetched_bytes": pulled.fetched_bytes,
        "was_complete": pulled.was_complete,
    }
