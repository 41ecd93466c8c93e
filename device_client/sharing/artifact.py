"""A fine-tune as an OCI artifact, which any registry carries, and its signature beside it.

    fine-tune   artifactType application/vnd.zo-device.fine-tune.v1+json      subject: the bundle's manifest
                config: what it says of itself      layer: theta.safetensors (float16) or journal.bin
    signature   artifactType application/vnd.zo-device.fine-tune.signature.v1+json      subject: the fine-tune
                layer: a DSSE envelope over digest, bundle and key; tagged sha256-<hex>.sig

Everything is bounded and compared with its digest before it is believed, and the signature before what it signs is
parsed further. Whose key it is, is decided elsewhere.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from device_client.sharing.documents import MAX_DOCUMENT_BYTES, Content, FineTune, Statement
from shared.bundle.documents import FORMAT_MAJOR, parse_document, parse_json
from shared.bundle.dsse import ENVELOPE_MEDIA_TYPE, MAX_ENVELOPE_BYTES, open_envelope, seal
from shared.bundle.layout import ImageLayout, manifest_descriptor
from shared.bundle.manifest import (
    ARTIFACT_TYPE,
    MAX_MANIFEST_BYTES,
    TITLE_ANNOTATION,
    Descriptor,
    Manifest,
    parse_artifact,
)
from shared.bundle.signature import signature_tag
from shared.bundle.statement import encode_public_key
from shared.errors import (
    BlobMissing,
    InvalidManifest,
    InvalidRequest,
    LimitExceeded,
    NotFound,
    SignatureInvalid,
    SignatureMissing,
    UpgradeNeeded,
)

FINE_TUNE_TYPE = "application/vnd.zo-device.fine-tune.v1+json"
CONFIG_TYPE = "application/vnd.zo-device.fine-tune.config.v1+json"
SIGNATURE_TYPE = "application/vnd.zo-device.fine-tune.signature.v1+json"
STATEMENT_TYPE = "application/vnd.zo-device.fine-tune.statement.v1+json"
LAYERS: dict[Content, tuple[str, str]] = {
    "values": ("theta.safetensors", "application/vnd.zo-device.fine-tune.values.v1+safetensors"),
    "journal": ("journal.bin", "application/vnd.zo-device.fine-tune.journal.v1"),
}
"""What a layer holds: its title and media type."""

MAX_JOURNAL_BYTES = 256 * 1024 * 1024
_HEADER_BYTES = 64 * 1024
_COPY_AGAIN = "copy it again, or ask who shared it"


@dataclass(frozen=True, slots=True)
class SharedFineTune:
    """A fine-tune whose bytes are those that its key has signed.

    Attributes:
        document: What it says of itself.
        digest: Of the artifact's manifest.
        signer: Fingerprint of the key.
        layer: The file of its values or its journal.
    """

    document: FineTune
    digest: str
    signer: str
    layer: Path


def write_fine_tune(
    folder: Path, document: FineTune, content: bytes, subject: Descriptor, key: Ed25519PrivateKey
) -> str:
    """Write the artifact and its signature as an image layout and return the artifact's digest.

    Args:
        folder: An empty folder.
        document: What it says of itself.
        content: Of the layer.
        subject: The bundle's manifest.
        key: Signs.
    """
    layout = ImageLayout.create(folder)
    title, media_type = LAYERS[document.content]
    manifest = _add_manifest(
        layout,
        Manifest(
            artifact_type=FINE_TUNE_TYPE,
            config=layout.add_bytes(document.to_bytes(), CONFIG_TYPE),
            layers=[_titled(layout.add_bytes(content, media_type), title)],
            subject=subject.model_copy(update={"annotations": None}),
        ),
    )
    statement = Statement(fine_tune=manifest.digest, bundle=subject.digest, public_key=encode_public_key(key))
    envelope = layout.add_bytes(seal(key, STATEMENT_TYPE, statement.to_bytes()), ENVELOPE_MEDIA_TYPE)
    signature = _add_manifest(
        layout,
        Manifest(
            artifact_type=SIGNATURE_TYPE,
            config=layout.add_bytes(b"{}", "application/vnd.oci.empty.v1+json"),
            layers=[_titled(envelope, "statement.dsse.json")],
            subject=manifest,
        ),
    )
    name = document.name.lower()
    layout.update({f"{name}:latest": manifest, f"{name}:{signature_tag(manifest.digest)}": signature})
    (folder / ".lock").unlink(missing_ok=True)
    return manifest.digest


def read_fine_tune(folder: Path) -> SharedFineTune:
    """Return the fine-tune of an image layout, its signature checked.

    Raises:
        NotFound: There is none.
        InvalidRequest: It is a bundle, or there are several.
        IntegrityError: It is damaged, forged or not signed.
        UpgradeNeeded: It was written by a newer zo-device.
    """
    layout = ImageLayout(folder)
    found, manifest = _sole_artifact(layout)
    if manifest.subject is None or len(manifest.layers) != 1:
        raise InvalidManifest("a fine-tune without a subject, or not of one layer", next_step=_COPY_AGAIN)
    statement = _statement(layout, found)
    if statement.bundle != manifest.subject.digest:
        raise SignatureInvalid(
            f"the signature is for bundle {statement.bundle}",
            needed=f"{manifest.subject.digest}, the artifact's subject",
        )
    document = _document(_read(layout, manifest.config, MAX_DOCUMENT_BYTES))
    if document.bundle != manifest.subject.digest:
        raise InvalidManifest(
            f"it says that it belongs to bundle {document.bundle}", needed=f"{manifest.subject.digest}, its subject"
        )
    (layer,) = manifest.layers
    if (layer.title, layer.media_type) != LAYERS[document.content]:
        raise InvalidManifest(f"a layer {layer.title!r} of {layer.media_type[:80]}", needed=LAYERS[document.content][0])
    most = MAX_JOURNAL_BYTES if document.content == "journal" else 2 * document.value_count + _HEADER_BYTES
    _read(layout, layer, most)
    return SharedFineTune(document, found.digest, statement.signer, layout.blob_path(layer.digest))


def _sole_artifact(layout: ImageLayout) -> tuple[Descriptor, Manifest]:
    manifests = [
        (descriptor, parse_artifact(_read(layout, descriptor, MAX_MANIFEST_BYTES)))
        for name, descriptor in layout.references().items()
        if not name.endswith(".sig")
    ]
    found = [(descriptor, manifest) for descriptor, manifest in manifests if manifest.artifact_type == FINE_TUNE_TYPE]
    if len(found) == 1:
        return found[0]
    if any(manifest.artifact_type == ARTIFACT_TYPE for _, manifest in manifests):
        raise InvalidRequest(
            f"{layout.root} holds a bundle", needed="a fine-tune", next_step=f"zo-device import {layout.root}"
        )
    raise NotFound(
        f"{len(found)} fine-tunes in {layout.root}", needed="one, as zo-device share writes it", next_step=_COPY_AGAIN
    )


def _statement(layout: ImageLayout, artifact: Descriptor) -> Statement:
    """Return what was signed of an artifact, if the key that it names has signed it."""
    tag = signature_tag(artifact.digest)
    beside = [found for name, found in layout.references().items() if name.rpartition(":")[2] == tag]
    if not beside:
        raise SignatureMissing(
            "a fine-tune without a signature", needed="one by whoever shared it", next_step="share it again"
        )
    manifest = parse_artifact(_read(layout, beside[0], MAX_MANIFEST_BYTES))
    if manifest.artifact_type != SIGNATURE_TYPE or len(manifest.layers) != 1:
        raise SignatureInvalid(f"a signature of type {manifest.artifact_type[:80]!r}", needed=SIGNATURE_TYPE)
    envelope = open_envelope(_read(layout, manifest.layers[0], MAX_ENVELOPE_BYTES), payload_type=STATEMENT_TYPE)
    statement = parse_document(
        Statement, envelope.payload, limit=MAX_ENVELOPE_BYTES, what="fine-tune statement", error=SignatureInvalid
    )
    envelope.check_signed_by(base64.b64decode(statement.public_key))
    if statement.fine_tune != artifact.digest:
        raise SignatureInvalid(f"a signature over {statement.fine_tune}", needed=f"one over {artifact.digest}")
    return statement


def _document(data: bytes) -> FineTune:
    fields = parse_json(data, MAX_DOCUMENT_BYTES, "fine-tune", InvalidManifest)
    if isinstance(form := fields.get("format"), int) and form > FORMAT_MAJOR:
        raise UpgradeNeeded(f"a fine-tune of format {form}", needed="a newer zo-device")
    return parse_document(FineTune, data, limit=MAX_DOCUMENT_BYTES, what="fine-tune", error=InvalidManifest)


def _read(layout: ImageLayout, blob: Descriptor, most: int) -> bytes:
    if blob.size > most:
        raise LimitExceeded(f"{blob.title or blob.media_type[:80]} of {blob.size} bytes", needed=f"at most {most}")
    try:
        return layout.read_blob(blob.digest, max_bytes=blob.size)
    except NotFound as error:
        raise BlobMissing(f"{layout.root} lacks blob {blob.digest}", next_step=_COPY_AGAIN) from error


def _titled(blob: Descriptor, title: str) -> Descriptor:
    return blob.model_copy(update={"annotations": {TITLE_ANNOTATION: title}})


def _add_manifest(layout: ImageLayout, manifest: Manifest) -> Descriptor:
    data = manifest.to_bytes()
    return layout.add_bytes(data, manifest_descriptor(data).media_type)
