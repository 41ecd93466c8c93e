"""The rules for a signed statement: that it speaks for what was asked, by a trusted key, and is the newest there is.

    name and tag   those that were asked for; of a digest only the name          substitution
    key            trusted, or reached from a trusted one by rotations           wrong key, stolen old key
    digest         that of the manifest                                          mix and match
    expiry         not in the past, with five minutes for clocks that differ     freeze
    version        not lower than the last one; equal means the same digest      rollback, equivocation

Pure functions: values in, a value or an error out; the time is an argument. References: The Update Framework 1.0 § 5.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta

from device_client.download.publisher_memory import PublisherMemory, SeenRelease
from shared.bundle.signature_artifact import MAX_ROTATIONS
from shared.bundle.statement import ReleaseStatement, SignedRelease, SignedRotation, format_time
from shared.errors import Equivocated, OtherName, PublisherChanged, RolledBack, SignatureInvalid, StatementExpired

CLOCK_SKEW = timedelta(minutes=5)


def find_release(
    releases: Sequence[SignedRelease], name: str, tag: str | None, source: str, command: str
) -> SignedRelease:
    """Return the release that speaks for a name and tag; of several for the name alone the newest.

    Args:
        releases: Verified statements.
        name: The name that was asked for.
        tag: The tag that was asked for, or None where a digest was.
        source: Server and name, for messages.
        command: What was typed, for messages.

    Raises:
        OtherName: There is none.
    """
    fitting = [
        release for release in releases if release.statement.name == name and tag in (None, release.statement.tag)
    ]
    if not fitting:
        signed = ", ".join(f"{release.statement.name}:{release.statement.tag}" for release in releases[:3])
        raise OtherName(
            f"{source} answers with a bundle that is signed {f'as {signed}' if signed else 'for other tags only'}",
            needed=f"one that its publisher signed as {name}:{tag}" if tag else f"one signed under the name {name}",
            next_step="do not use this server; ask the publisher. Where a server keeps a bundle under a name of its "
            f"own: {command} --published-as NAME:TAG",
        )
    return max(fitting, key=lambda release: release.statement.version)


def path_to_publisher(
    publisher: str,
    trusted: Collection[str],
    rotations: Sequence[SignedRotation],
    memory: PublisherMemory,
    source: str,
    command: str,
) -> tuple[SignedRotation, ...]:
    """Return the rotations that lead from a trusted key to the one that signed; none where it is trusted itself.

    Args:
        publisher: Fingerprint of the key that signed.
        trusted: Fingerprints that are pinned or required; empty at first contact, where any key will do that was not
            replaced.
        rotations: Verified rotations that came with the bundle.
        memory: What this device remembers.
        source: Server and name, for messages.
        command: What was typed, for messages.

    Raises:
        PublisherChanged: None of the trusted keys leads to it, or it was replaced.
    """
    if (newest := memory.newest_key(publisher)) != publisher:
        raise PublisherChanged(
            f"{source} is signed by {publisher}, which its owner has replaced",
            needed=f"a signature by {newest}",
            next_step="ask the publisher to sign the bundle again; the old key may have been stolen",
        )
    offered = {rotation.rotation.old: rotation for rotation in rotations}
    for fingerprint in sorted(trusted):
        path: list[SignedRotation] = []
        reached = memory.newest_key(fingerprint)
        while reached != publisher and reached in offered and len(path) < MAX_ROTATIONS:
            path.append(offered[reached])
            reached = offered[reached].rotation.new
        if reached == publisher:
            return tuple(path)
    if trusted:
        raise PublisherChanged(
            f"{source} is signed by {publisher}",
            needed=f"a signature by {' or '.join(sorted(map(memory.newest_key, trusted)))}",
            next_step=f"ask the publisher; if the new key is right: {command} --trusted-key {publisher}",
        )
    return ()


def check_digest_matches(statement: ReleaseStatement, digest: str) -> None:
    """Do nothing where a statement speaks for that manifest. Raises SignatureInvalid otherwise."""
    if statement.digest != digest:
        raise SignatureInvalid(
            f"a statement that {statement.name}:{statement.tag} is {statement.digest}",
            needed=f"a statement for {digest}",
            next_step="do not use this server; ask the publisher",
        )


def check_not_expired(statement: ReleaseStatement, now: datetime) -> None:
    """Do nothing where a statement is still valid.

    Raises:
        StatementExpired: It is not, by more than the clocks may differ.
    """
    if now - CLOCK_SKEW > statement.expires_at:
        raise StatementExpired(
            f"what the publisher signed for {statement.name}:{statement.tag} was valid until {statement.expires}; "
            f"by this device's clock it is {format_time(now)}",
            needed="a bundle that the publisher still vouches for",
            next_step="check the clock of this device; if it is right, ask the publisher to publish the bundle again, "
            f"or take this very content: {statement.name}@{statement.digest} (from a folder: --allow-expired)",
        )


def check_not_older(statement: ReleaseStatement, seen: SeenRelease | None, source: str) -> None:
    """Do nothing where a statement is at least as new as the last one that was seen.

    Raises:
        RolledBack: Its version is lower.
        Equivocated: Its version is the same, but its digest another.
    """
    if seen is None or statement.version > seen.version:
        return
    if statement.version < seen.version:
        raise RolledBack(
            f"{source} offers version {statement.version} of {statement.name}:{statement.tag}",
            needed=f"version {seen.version}, which this device has seen, or a newer one",
            next_step="try again later or from another server; a publisher that goes back on purpose publishes the old "
            "bundle again, as a new version",
        )
    if statement.digest != seen.digest:
        raise Equivocated(
            f"version {statement.version} of {statement.name}:{statement.tag} is {statement.digest} now",
            needed=f"{seen.digest}, which this device has seen as that version",
            next_step="do not use this bundle; ask its publisher",
        )
