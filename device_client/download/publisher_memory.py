"""What this device remembers of publishers: one document, and what follows from it.

    pins            source → fingerprint of the key that its bundles are signed by
    releases        source → tag → version, digest and key of the last statement that was accepted
    statement_keys  keys that have signed statements here: an older kind of signature by them is a downgrade
    successors      fingerprint → the one that took its place, as the replaced key has signed

A source is server and name; what came from a folder has the source ``import/<name>``. A key that has a successor is
never trusted again, at whichever source. Values only: ``trusted_keys`` reads and writes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from shared.bundle.documents import Document
from shared.bundle.statement import KeyRotation, ReleaseStatement

Fingerprint = Annotated[str, Field(pattern=r"^ed25519:[0-9a-f]{64}$")]


class SeenRelease(Document):
    """The last accepted statement of one source and tag."""

    version: int
    digest: str
    publisher: Fingerprint


class PublisherMemory(Document):
    """All of it; frozen, each change gives another one."""

    format: Literal[2] = 2
    pins: dict[str, Fingerprint] = Field(default_factory=dict)
    releases: dict[str, dict[str, SeenRelease]] = Field(default_factory=dict)
    statement_keys: list[Fingerprint] = Field(default_factory=list)
    successors: dict[str, Fingerprint] = Field(default_factory=dict)

    def seen(self, source: str, tag: str, publisher: str) -> SeenRelease | None:
        """Return the last release by that key, or None.

        Versions of another key do not count: otherwise whoever once held a stolen key could keep devices from all later
        bundles by a version that nothing reaches. The Update Framework clears its state at a rotation for this reason.
        """
        release = self.releases.get(source, {}).get(tag)
        return release if release is not None and release.publisher == publisher else None

    def knows_statements(self, source: str, publisher: str | None = None) -> bool:
        """Whether statements from the source, or by that key from anywhere, were ever accepted."""
        return source in self.releases or publisher in self.statement_keys

    def newest_key(self, fingerprint: str) -> str:
        """Return the key that has taken a key's place, over any number of steps; the key itself where none has."""
        visited = {fingerprint}
        while (successor := self.successors.get(fingerprint)) is not None and successor not in visited:
            visited.add(successor)
            fingerprint = successor
        return fingerprint

    def with_release(
        self, source: str, tag: str | None, statement: ReleaseStatement, rotations: Sequence[KeyRotation]
    ) -> PublisherMemory:
        """Return what is remembered after a statement was accepted.

        Args:
            source: Where it came from.
            tag: What was asked for; None where a digest was, which says nothing about a tag's newest version.
            statement: What was accepted.
            rotations: The steps from the key that was trusted to the one that signed it.
        """
        seen = SeenRelease(version=statement.version, digest=statement.digest, publisher=statement.publisher)
        tags = {**self.releases.get(source, {}), **({} if tag is None else {tag: seen})}
        return self.model_copy(
            update={
                "releases": {**self.releases, source: tags},
                "statement_keys": sorted({*self.statement_keys, statement.publisher}),
                "successors": {**self.successors, **{rotation.old: rotation.new for rotation in rotations}},
            }
        )
