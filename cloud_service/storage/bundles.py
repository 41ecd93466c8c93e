"""Published bundles: what clients may read from the image layout, and how something becomes published.

Publishing sets the bundle's tag and its signature's tag ``sha256-<hex>.sig`` in one step. The signature's tag stays
when the bundle's tag moves on, so it also records which digests were ever published under a name: those can be read by
digest for ever (a device in the middle of a download is not cut off), and nothing else can, so a blob that a running
job has written is invisible. Lookups are cached per state of ``index.json``. Knows nothing about jobs or HTTP.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shared.api import SIGNATURE_SUFFIX, BundleSummary
from shared.bundle.digest import check_digest
from shared.bundle.layout import ImageLayout
from shared.bundle.manifest import (
    MAX_MANIFEST_BYTES,
    BundleConfig,
    Descriptor,
    Manifest,
    parse_artifact,
    parse_manifest,
)
from shared.bundle.read import read_bundle, read_config
from shared.bundle.signature import publish_signature, sign, signature_tag
from shared.durable_files import disk_errors, write_atomically
from shared.errors import InvalidDigest, NotFound

_SIGNATURE_TAG = re.compile(rf"(sha256)-([0-9a-f]{{64}}){re.escape(SIGNATURE_SUFFIX)}")
_CACHED_BUNDLES = 64


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """A blob that a client may read."""

    path: Path
    digest: str
    media_type: str


@dataclass(frozen=True, slots=True)
class _Published:
    """One state of ``index.json``: by name, tags and everything readable by digest."""

    tags: dict[str, dict[str, Descriptor]]
    manifests: dict[str, dict[str, Descriptor]]


class BundleStore:
    """The published bundles of one service.

    Args:
        layout: The image layout.
        reports: Folder of the report pages.
        key: The publisher's key.
    """

    def __init__(self, layout: ImageLayout, reports: Path, key: Ed25519PrivateKey) -> None:
        self.layout = layout
        self._reports = reports
        self._key = key
        self._manifest = lru_cache(_CACHED_BUNDLES)(self._read_manifest)
        self._config = lru_cache(_CACHED_BUNDLES)(self._read_config)
        self._published = lru_cache(1)(self._read_published)

    def sign(self, manifest: Descriptor) -> Descriptor:
        """Validate the whole bundle, sign it and return the signature's manifest; nothing becomes visible yet.

        Raises:
            IntegrityError: Something about the bundle is wrong; it is not signed.
            DiskError: The disk is full or not writable.
        """
        read_bundle(self.layout, manifest.digest)
        return publish_signature(self.layout, manifest, sign(self._key, manifest.digest))

    def publish(self, name: str, tag: str, manifest: Descriptor, signature: Descriptor) -> None:
        """Make a signed bundle visible under ``name:tag``: bundle and signature at once. May be repeated.

        Raises:
            DiskError: The disk is full or not writable; nothing became visible.
        """
        self.layout.update({f"{name}:{tag}": manifest, f"{name}:{signature_tag(manifest.digest)}": signature})

    def add_report(self, digest: str, page: bytes) -> None:
        """Keep a bundle's report page; does nothing where there is one."""
        target = self.report_path(digest)
        if not target.exists():
            with disk_errors(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(target, page)

    def report_path(self, digest: str) -> Path:
        """Return where the report page of a bundle lies or would lie."""
        return self._reports / f"{check_digest(digest).removeprefix('sha256:')}.html"

    def manifest(self, name: str, reference: str) -> StoredBlob:
        """Return the manifest of a tag or digest published under ``name``.

        Raises:
            NotFound: There is none.
        """
        published = self._published(self._index_state())
        if ":" in reference:
            found = published.manifests.get(name, {}).get(reference)
        else:
            found = published.tags.get(name, {}).get(reference)
        if found is None:
            raise NotFound(f"no bundle {name!r} with the reference {reference[:80]!r}", next_step="GET /v1/bundles")
        return StoredBlob(self.layout.blob_path(found.digest), found.digest, found.media_type)

    def blob(self, name: str, digest: str) -> StoredBlob:
        """Return a blob of a bundle published under ``name``.

        Raises:
            NotFound: No bundle of that name has such a blob.
        """
        try:
            path = self.layout.blob_path(digest)
        except InvalidDigest as error:
            raise NotFound(f"no blob {digest[:80]!r}", needed="sha256: and 64 lower-case hex digits") from error
        published = self._published(self._index_state())
        for manifest in published.manifests.get(name, {}):
            if any(blob.digest == digest for blob in self._manifest(manifest).blobs) and path.is_file():
                return StoredBlob(path, digest, "application/octet-stream")
        raise NotFound(f"no blob {digest} in the bundles named {name!r}", next_step="GET /v1/bundles")

    def summaries(self) -> list[BundleSummary]:
        """Return every tag of every bundle, sorted by name and tag."""
        published = self._published(self._index_state())
        return [
            self._summary(name, tag, descriptor.digest)
            for name, tags in sorted(published.tags.items())
            for tag, descriptor in sorted(tags.items())
            if not tag.endswith(SIGNATURE_SUFFIX)
        ]

    def check_readable(self) -> None:
        """Do nothing where the store can be read. Raises IntegrityError, OSError or NotFound otherwise."""
        if not self.layout.exists:
            raise NotFound(f"no image layout in {self.layout.root}")
        self._published(self._index_state())

    @property
    def free_bytes(self) -> int:
        """Free bytes of the store's disk."""
        return shutil.disk_usage(self.layout.root).free

    def _summary(self, name: str, tag: str, digest: str) -> BundleSummary:
        manifest, config = self._manifest(digest), self._config(digest)
        has_report = self.report_path(digest).exists()
        return BundleSummary(
            name=name,
            tag=tag,
            digest=digest,
            size_bytes=manifest.size_bytes,
            base_model=config.source.id,
            parameter_count=config.parameter_counts.total,
            sensitive_count=config.sensitive_count,
            perplexity_16bit=config.quality.get("perplexity_16bit"),
            perplexity_bundle=config.quality.get("perplexity_bundle"),
            report_url=f"/v1/bundles/{name}/report?reference={digest}" if has_report else None,
        )

    def _index_state(self) -> tuple[int, int]:
        try:
            status = (self.layout.root / "index.json").stat()
        except FileNotFoundError:
            return (0, 0)
        return (status.st_ino, status.st_mtime_ns)

    def _read_published(self, _state: tuple[int, int]) -> _Published:
        tags: dict[str, dict[str, Descriptor]] = {}
        for reference, descriptor in self.layout.references().items():
            name, _, tag = reference.rpartition(":")
            tags.setdefault(name, {})[tag] = descriptor
        manifests = {name: dict(self._readable_manifests(tagged)) for name, tagged in tags.items()}
        return _Published(tags, manifests)

    def _readable_manifests(self, tagged: dict[str, Descriptor]) -> Iterator[tuple[str, Descriptor]]:
        for tag, descriptor in tagged.items():
            yield descriptor.digest, descriptor
            if (signature := _SIGNATURE_TAG.fullmatch(tag)) is not None:
                digest = ":".join(signature.groups())
                path = self.layout.blob_path(digest)
                if path.is_file():
                    yield digest, Descriptor(media_type=descriptor.media_type, digest=digest, size=path.stat().st_size)

    def _read_manifest(self, digest: str) -> Manifest:
        data = self.layout.read_blob(digest, max_bytes=MAX_MANIFEST_BYTES)
        return parse_artifact(data)

    def _read_config(self, digest: str) -> BundleConfig:
        data = self.layout.read_blob(digest, max_bytes=MAX_MANIFEST_BYTES)
        return read_config(self.layout, parse_manifest(data))
