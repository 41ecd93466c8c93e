"""The manifest of a bundle: OCI's form, which lists the blobs by digest.

What the tensors in the blobs mean is said by the configuration (``config``). Holds neither a time nor a machine, so
the same input gives the same bytes. Knows nothing about files.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from shared.bundle.digest import Digest
from shared.bundle.documents import FORMAT_MAJOR, Document, newer_format, parse_document, parse_json, validated
from shared.errors import InvalidManifest

MANIFEST_MEDIA_TYPE = "application/vnd.oci.image.manifest.v1+json"
ARTIFACT_TYPE = "application/vnd.zo-device.bundle.v1+json"
CONFIG_MEDIA_TYPE = "application/vnd.zo-device.bundle.config.v1+json"
TENSORS_MEDIA_TYPE = "application/vnd.zo-device.tensors.v1+safetensors"
JSON_MEDIA_TYPE = "application/json"
TEXT_MEDIA_TYPE = "text/markdown"
TITLE_ANNOTATION = "org.opencontainers.image.title"

TRUNK_TITLE = "trunk.safetensors"
SENSITIVE_TITLE = "sensitive.safetensors"
TOKENIZER_TITLE = "tokenizer.json"
REPORT_TITLE = "report.json"

MAX_MANIFEST_BYTES = 4 * 1024 * 1024
_TITLE = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
_ARTIFACT_MAJOR = re.compile(r"application/vnd\.zo-device\.bundle\.v(\d+)\+json")
Title = Annotated[str, Field(pattern=_TITLE)]


def block_title(index: int) -> str:
    """Return the title of decoder block ``index``."""
    return f"block-{index:05d}.safetensors"


class Descriptor(Document):
    """A blob: what it is, its digest, its length in bytes."""

    media_type: Annotated[str, Field(alias="mediaType", max_length=255)]
    digest: Digest
    size: Annotated[int, Field(ge=0, lt=2**53)]
    annotations: dict[str, str] | None = None

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)

    @property
    def title(self) -> str:
        """The file name inside the bundle."""
        return (self.annotations or {}).get(TITLE_ANNOTATION, "")


class Manifest(Document):
    """An OCI image manifest (v1.1) whose artifact type is ours; only one beside a bundle has the bundle as subject."""

    schema_version: Annotated[Literal[2], Field(alias="schemaVersion")] = 2
    media_type: Annotated[Literal["application/vnd.oci.image.manifest.v1+json"], Field(alias="mediaType")] = (
        "application/vnd.oci.image.manifest.v1+json"
    )
    artifact_type: Annotated[str, Field(alias="artifactType")] = ARTIFACT_TYPE
    config: Descriptor
    layers: Annotated[list[Descriptor], Field(min_length=1, max_length=10_000)]
    subject: Descriptor | None = None
    annotations: dict[str, str] | None = None

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)

    @model_validator(mode="after")
    def _titles_are_safe_and_unique(self) -> Manifest:
        titles = [layer.title for layer in self.layers]
        for title in titles:
            if not re.fullmatch(_TITLE, title):
                raise ValueError(f"layer title {title!r} is no plain file name")
        if len(set(titles)) != len(titles):
            raise ValueError("two layers have the same title")
        return self

    def layer(self, title: str) -> Descriptor | None:
        """Return the layer of that title, or None."""
        return next((layer for layer in self.layers if layer.title == title), None)

    @property
    def blobs(self) -> list[Descriptor]:
        """Every distinct blob: configuration first, then the layers in order."""
        return list({blob.digest: blob for blob in [self.config, *self.layers]}.values())

    @property
    def size_bytes(self) -> int:
        """Bytes of all distinct blobs."""
        return sum(blob.size for blob in self.blobs)


def parse_manifest(data: bytes) -> Manifest:
    """Return the validated manifest of a bundle.

    Raises:
        LimitExceeded: It is longer than 4 MiB.
        UpgradeNeeded: It is of a newer major version.
        InvalidManifest: Anything else is wrong with it.
    """
    fields = parse_json(data, MAX_MANIFEST_BYTES, "manifest", InvalidManifest)
    artifact_type = str(fields.get("artifactType"))
    match = _ARTIFACT_MAJOR.fullmatch(artifact_type)
    if match is None:
        raise InvalidManifest(f"artifactType {artifact_type[:80]!r}", needed=ARTIFACT_TYPE)
    if int(match[1]) > FORMAT_MAJOR:
        raise newer_format(f"a bundle of format {match[1]}")
    manifest = validated(Manifest, data, "manifest", InvalidManifest)
    if manifest.subject is not None:
        raise InvalidManifest("manifest: a bundle with a subject", needed="see shared/bundle/FORMAT.md")
    return manifest


def parse_artifact(data: bytes) -> Manifest:
    """Return the validated manifest of an artifact of any type: a bundle of any version, or a signature.

    Raises:
        LimitExceeded: It is longer than 4 MiB.
        InvalidManifest: Anything else is wrong with it.
    """
    return parse_document(Manifest, data, limit=MAX_MANIFEST_BYTES, what="manifest", error=InvalidManifest)
