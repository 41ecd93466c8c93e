"""The options that say which bundles are accepted, and how an accepted one is told; for ``pull`` and ``import``."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from typing import Any

from device_client.console import Console
from device_client.download.pull import Pulled
from device_client.download.reference import parse_reference
from device_client.download.trusted_bundle import AcceptanceRules
from device_client.download.trusted_keys import check_fingerprint
from device_client.settings import Settings
from device_client.store import client_version
from shared.bundle.statement import ReleaseStatement
from shared.byte_sizes import format_bytes


def add_trust_options(parser: argparse.ArgumentParser) -> None:
    """Declare whose bundles are accepted."""
    parser.add_argument("--trusted-key", metavar="ed25519:…", help="accept this publisher only, and pin it")
    parser.add_argument("--allow-unsigned", action="store_true", help="accept a bundle that has no signature")
    parser.add_argument(
        "--allow-old-signature",
        action="store_true",
        help="accept a signature from before publishers signed name and age too, although this one does now",
    )
    parser.add_argument(
        "--published-as",
        metavar="NAME:TAG",
        help="what the publisher calls the bundle, where the server or folder has it under another name",
    )


def acceptance_rules(
    arguments: argparse.Namespace,
    settings: Settings,
    source: str,
    reference: str,
    *,
    digest: str | None = None,
    allows_expired: bool = False,
) -> AcceptanceRules:
    """Return the rules that options and settings amount to; pulling and importing add what is remembered.

    Args:
        arguments: The options of ``add_trust_options``.
        settings: The device's settings.
        source: What is remembered is remembered for it.
        reference: ``name:tag`` that the publisher must have signed, unless the options name another.
        digest: The manifest digest that was asked for, or None.
        allows_expired: Whether an expired statement is accepted.

    Raises:
        InvalidRequest: The trusted key or the publisher's name is malformed.
    """
    required = arguments.trusted_key or settings.trusted_key
    published = parse_reference(arguments.published_as or reference, None)
    return AcceptanceRules(
        source=source,
        name=published.name,
        tag=published.tag,
        now=datetime.now(UTC),
        required=check_fingerprint(required) if required else None,
        allows_unsigned=arguments.allow_unsigned,
        allows_old_signature=arguments.allow_old_signature,
        allows_expired=allows_expired,
        digest=digest,
        client_version=client_version(),
        command=arguments.typed,
    )


def describe(pulled: Pulled, source: str, settings: Settings, console: Console) -> dict[str, Any]:
    """Tell people what is in the store now, and return it for ``--json``."""
    if pulled.was_complete:
        console.say(f"{pulled.reference} is up to date; every byte was checked. {pulled.digest}")
    else:
        console.say(f"{pulled.reference} is here and verified: {format_bytes(pulled.size_bytes)}. {pulled.digest}")
    if pulled.displaced is not None:
        console.warn(
            f"{pulled.reference} named another publisher's bundle until now, {pulled.displaced.manifest.digest}; that "
            f"one stays here as {pulled.displaced.kept_as}"
        )
    if pulled.publisher is None:
        console.warn("this bundle is not signed")
    elif pulled.statement is None:
        console.warn(
            "this bundle has an older kind of signature: it proves who published the bytes, but not under which name, "
            "nor that there is nothing newer"
        )
    if pulled.replaced_key is not None:
        console.say(
            f"The publisher has replaced its key {pulled.replaced_key}, which signed that {pulled.publisher} takes its "
            f"place; the new one is now pinned for {source}"
        )
    elif pulled.is_first_contact:
        console.say(f"First contact with its publisher: {pulled.publisher} is now pinned for {source}")
    if settings.trusted_key is not None and pulled.publisher not in (None, settings.trusted_key):
        console.warn(f"ZO_DEVICE_TRUSTED_KEY names a key that was replaced; set it to {pulled.publisher}")
    return {
        "reference": pulled.reference,
        "digest": pulled.digest,
        "source": source,
        "publisher": pulled.publisher,
        "release": describe_statement(pulled.statement),
        "replaced_key": pulled.replaced_key,
        "is_first_contact": pulled.is_first_contact,
        "displaced": pulled.displaced.kept_as if pulled.displaced else None,
        "size_bytes": pulled.size_bytes,
        "fetched_bytes": pulled.fetched_bytes,
        "was_complete": pulled.was_complete,
    }


def describe_statement(statement: ReleaseStatement | None) -> dict[str, Any] | None:
    """Return what a publisher stated for ``--json``, or None where there is no statement."""
    if statement is None:
        return None
    return statement.model_dump(include={"name", "tag", "version", "expires"})
