"""``zo-device verify``: hash and validate every byte of a bundle in the store, and what its publisher signed.

Whose key that is was judged when the bundle came; here a statement only has to be genuine and about these bytes.
"""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from typing import Any

from device_client.commands.trust_options import describe_statement
from device_client.console import Console
from device_client.download.copying import read_signatures
from device_client.download.trusted_release import check_digest_matches
from device_client.settings import Settings
from device_client.store import client_version, resolve_reference
from shared.bundle.read import read_bundle
from shared.bundle.signature import verify
from shared.bundle.signature_artifact import SignatureDocuments, verified_statements
from shared.bundle.statement import ReleaseStatement
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
    documents = read_signatures(layout, reference, named.digest)
    statement = _statement(documents, reference.rpartition(":")[2], named.digest)
    publisher = statement.publisher if statement else None
    if documents is not None and documents.old_signature is not None:
        publisher = verify(documents.old_signature, named.digest).fingerprint
    console.say(
        f"{reference} is intact: {format_bytes(bundle.manifest.size_bytes)}, {len(bundle.manifest.blobs)} blobs"
    )
    console.say(f"Signed by {publisher}" if publisher else "It has no signature.")
    if statement is not None:
        console.say(f"Published as {statement.name}:{statement.tag}, valid until {statement.expires}")
        if statement.expires_at < datetime.now(UTC):
            console.warn("its publisher no longer vouches for it: zo-device pull looks for a newer one")
    elif publisher is not None:
        console.warn("its signature is of an older kind that proves neither its name nor its age")
    return {
        "reference": reference,
        "digest": named.digest,
        "size_bytes": bundle.manifest.size_bytes,
        "blobs": len(bundle.manifest.blobs),
        "publisher": publisher,
        "release": describe_statement(statement),
    }


def _statement(documents: SignatureDocuments | None, tag: str, digest: str) -> ReleaseStatement | None:
    """Return the statement for a tag, or the newest where the bundle lies here under a tag of its own."""
    statements = [release.statement for release in verified_statements(documents).releases]
    if not statements:
        return None
    found = max(statements, key=lambda statement: (statement.tag == tag, statement.version))
    check_digest_matches(found, digest)
    return found
