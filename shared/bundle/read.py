"""Reads a bundle, validating everything before anything is loaded.

Order: manifest · length and digest of every blob · configuration · of every tensor file the header, the set of tensors,
their shapes and the finiteness of 16-bit numbers · sensitive indices and ranks. Costs one pass over all bytes (hashing)
and one over the 16-bit ones; memory is one tensor at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared.bundle.config import MAX_CONFIG_BYTES, SENSITIVE_PARTS, BundleConfig, parse_config
from shared.bundle.digest import digest_of_file
from shared.bundle.layout import ImageLayout
from shared.bundle.manifest import (
    MAX_MANIFEST_BYTES,
    SENSITIVE_TITLE,
    TENSORS_MEDIA_TYPE,
    Descriptor,
    Manifest,
    parse_manifest,
)
from shared.bundle.tensor_header import TensorSlot, read_header, read_tensor
from shared.errors import BlobMissing, BlobTruncated, DigestMismatch, NotFound, TensorMismatch, ValuesNotFinite
from shared.sensitivity_mask import SensitivityMask, check_indices, check_ranks

Expected = dict[str, dict[str, tuple[str, tuple[int, ...]]]]


@dataclass(frozen=True, slots=True)
class SensitiveTensors:
    """The sensitive values of all weights; the header is read once, when it is opened."""

    path: Path
    slots: dict[str, TensorSlot]

    @classmethod
    def open(cls, path: Path) -> SensitiveTensors:
        """Return those of a file."""
        return cls(path, read_header(path))

    def read(self, tensor: str) -> tuple[SensitivityMask, NDArray[np.float16]]:
        """Return the mask (k,) and the float16 values (k,) of one quantised weight; k may be 0."""
        if f"{tensor}.indices" not in self.slots:
            empty = np.empty(0, np.int32)
            return SensitivityMask(empty, empty), np.empty(0, np.float16)
        parts = {part: read_tensor(self.path, self.slots[f"{tensor}.{part}"]) for part in SENSITIVE_PARTS}
        mask = SensitivityMask(parts["indices"].astype(np.int32), parts["rank"].astype(np.int32))
        return mask, parts["values"].astype(np.float16)


@dataclass(frozen=True, slots=True)
class Bundle:
    """A validated bundle in an image layout.

    Attributes:
        layout: Where it lies.
        digest: The manifest's digest: the bundle's identity.
        manifest: The manifest.
        config: What the tensors mean.
    """

    layout: ImageLayout
    digest: str
    manifest: Manifest
    config: BundleConfig

    def path(self, title: str) -> Path:
        """Return the file of the layer with that title.

        Raises:
            BlobMissing: The manifest lists no such layer.
        """
        return _layer_path(self.layout, self.manifest, title)

    def sensitive(self, tensor: str) -> tuple[SensitivityMask, NDArray[np.float16]]:
        """Return the mask (k,) and the float16 values (k,) of one quantised weight; for many, ``open_sensitive``."""
        return self.open_sensitive().read(tensor)

    def open_sensitive(self) -> SensitiveTensors:
        """Return all sensitive values, to be read weight by weight."""
        return SensitiveTensors.open(self.path(SENSITIVE_TITLE))


def read_bundle(
    layout: ImageLayout, digest: str, *, verify_digests: bool = True, client_version: tuple[int, int, int] | None = None
) -> Bundle:
    """Return the bundle with that manifest digest after validating all of it.

    Args:
        layout: Where it lies.
        digest: The manifest's digest.
        verify_digests: False skips hashing the blobs where the caller has just done so.
        client_version: This reader's version, compared with the bundle's minimum.

    Raises:
        NotFound: There is no such manifest.
        IntegrityError: Something is wrong; the subclass says what.
        UpgradeNeeded: The bundle was written for a newer reader.
    """
    manifest = parse_manifest(layout.read_blob(digest, max_bytes=MAX_MANIFEST_BYTES))
    for blob in manifest.blobs:
        _check_blob(layout, blob, verify_digests=verify_digests)
    config = read_config(layout, manifest, client_version=client_version)
    _check_tensors(layout, manifest, config)
    return Bundle(layout, digest, manifest, config)


def read_config(
    layout: ImageLayout, manifest: Manifest, *, client_version: tuple[int, int, int] | None = None
) -> BundleConfig:
    """Return the validated configuration of a manifest.

    Raises:
        BlobMissing: The configuration blob is absent.
        IntegrityError: It is damaged or invalid.
    """
    try:
        data = layout.read_blob(manifest.config.digest, max_bytes=MAX_CONFIG_BYTES)
    except NotFound as error:
        raise BlobMissing(str(error)) from error
    return parse_config(data, client_version=client_version)


def expected_tensors(config: BundleConfig) -> Expected:
    """Return what each tensor blob must hold: title → tensor name → (dtype, shape)."""
    expected: Expected = {SENSITIVE_TITLE: {}}
    for entry in config.tensors:
        blob = expected.setdefault(entry.blob, {})
        blob.update({f"{entry.name}.{part}": spec for part, spec in entry.part_shapes.items()})
        if entry.sensitive_count:
            count = (entry.sensitive_count,)
            for part, dtype in SENSITIVE_PARTS.items():
                expected[SENSITIVE_TITLE][f"{entry.name}.{part}"] = (dtype, count)
    for parameter in config.dense_parameters:
        expected.setdefault(parameter.blob, {})[parameter.name] = ("F16", tuple(parameter.shape))
    return expected


def _check_blob(layout: ImageLayout, blob: Descriptor, *, verify_digests: bool) -> None:
    path = layout.blob_path(blob.digest)
    name = blob.title or "configuration"
    if not path.is_file():
        raise BlobMissing(f"{name} ({blob.digest}) is not in {layout.root}", next_step="zo-device pull")
    size = path.stat().st_size
    if size != blob.size:
        raise BlobTruncated(f"{name}: {size} bytes", needed=f"{blob.size} bytes", next_step="zo-device pull")
    if verify_digests and digest_of_file(path) != blob.digest:
        raise DigestMismatch(f"{name} is not {blob.digest}", needed="unchanged bytes", next_step="zo-device pull")


def _check_tensors(layout: ImageLayout, manifest: Manifest, config: BundleConfig) -> None:
    expected = expected_tensors(config)
    titles = {layer.title for layer in manifest.layers if layer.media_type == TENSORS_MEDIA_TYPE}
    for title in sorted(titles - set(expected)):
        raise TensorMismatch(f"{title} is not mentioned in the configuration")
    for title, tensors in expected.items():
        path = _layer_path(layout, manifest, title)
        slots = read_header(path)
        _check_tensor_set(title, tensors, slots)
        for name, slot in slots.items():
            if slot.dtype == "F16" and not _are_finite(read_tensor(path, slot)):
                raise ValuesNotFinite(f"{title}: tensor {name} holds infinite or NaN values")
    _check_sensitive(layout, manifest, config)


def _are_finite(values: NDArray[np.generic]) -> bool:
    """Whether no 16-bit value has the exponent of infinity and NaN: their bits are compared four times faster."""
    return not values.size or int((values.view(np.uint16) & 0x7C00).max()) < 0x7C00


def _check_tensor_set(
    title: str, expected: dict[str, tuple[str, tuple[int, ...]]], slots: dict[str, TensorSlot]
) -> None:
    for name in sorted(set(expected) ^ set(slots)):
        fault = "is missing" if name in expected else "is not mentioned in the configuration"
        raise TensorMismatch(f"{title}: tensor {name} {fault}")
    for name, (dtype, shape) in expected.items():
        slot = slots[name]
        if (slot.dtype, slot.shape) != (dtype, shape):
            raise TensorMismatch(f"{title}: tensor {name} is {slot.dtype} {slot.shape}", needed=f"{dtype} {shape}")


def _check_sensitive(layout: ImageLayout, manifest: Manifest, config: BundleConfig) -> None:
    sensitive = SensitiveTensors.open(_layer_path(layout, manifest, SENSITIVE_TITLE))
    all_ranks = []
    for entry in config.tensors:
        mask, _ = sensitive.read(entry.name)
        check_indices(entry.name, mask.indices, entry.element_count)
        if config.mask.scope == "per_tensor":
            check_ranks(entry.name, mask.rank)
        all_ranks.append(mask.rank)
    if config.mask.scope == "global":
        check_ranks("the whole mask", np.concatenate(all_ranks))


def _layer_path(layout: ImageLayout, manifest: Manifest, title: str) -> Path:
    layer = manifest.layer(title)
    if layer is None:
        raise BlobMissing(f"the manifest lists no {title}")
    return layout.blob_path(layer.digest)
