"""Makes the signature artifact of a bundle under its name and tags: the one place of the cloud side that signs.

Costs a few milliseconds: an Ed25519 signature and three small files flushed to the disk. Knows nothing about the index.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shared.bundle.layout import ImageLayout
from shared.bundle.manifest import Descriptor
from shared.bundle.signature import publish_signature, sign


@dataclass(frozen=True, slots=True)
class TaggedBundle:
    """What a signature is about.

    Attributes:
        name: The bundle's name.
        manifest: The bundle's manifest.
        versions: Every tag of that name that names the bundle now, and the tag's version: a number that only grows.
    """

    name: str
    manifest: Descriptor
    versions: Mapping[str, int]


class BundleSigner:
    """Signs for one publisher.

    Args:
        layout: Where the artifacts are stored.
        key: The publisher's key.
    """

    def __init__(self, layout: ImageLayout, key: Ed25519PrivateKey) -> None:
        self._layout = layout
        self._key = key

    def sign(self, bundle: TaggedBundle) -> Descriptor:
        """Store the signature artifact and return its manifest.

        Raises:
            DiskError: The disk is full or not writable.
        """
        return publish_signature(self._layout, bundle.manifest, sign(self._key, bundle.manifest.digest))
