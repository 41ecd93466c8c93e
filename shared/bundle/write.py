"""Writes a bundle into an image layout, blob by blob.

Each ``add_…`` stores one finished blob and may be repeated after a crash: a blob that is already there is not written
again. Nothing is visible under a name until the caller tags the returned manifest.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from shared.bundle.config import BundleConfig
from shared.bundle.digest import chunk_digests
from shared.bundle.layout import ImageLayout, manifest_descriptor
from shared.bundle.manifest import CONFIG_MEDIA_TYPE, TENSORS_MEDIA_TYPE, TITLE_ANNOTATION, Descriptor, Manifest
from shared.durable_files import disk_errors

UNFINISHED_PREFIX = ".writing-"
"""Begins the name of a folder in a store that a blob is being written in."""


def add_tensors(layout: ImageLayout, title: str, tensors: Mapping[str, NDArray[np.generic]]) -> Descriptor:
    """Store tensors (uint8, float16 or int32) as one safetensors blob and return its layer descriptor.

    Raises:
        DiskError: The disk is full or not writable.
    """
    with disk_errors(layout.root), tempfile.TemporaryDirectory(dir=layout.root, prefix=UNFINISHED_PREFIX) as folder:
        path = Path(folder) / title
        contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
        with serialization_errors():
            safetensors.numpy.save_file(contiguous, path)
        return _titled(layout.add_file(path, TENSORS_MEDIA_TYPE), title)


def remove_unfinished(layout: ImageLayout) -> None:
    """Remove what writers left behind that were killed; call it only while nobody writes.

    Raises:
        DiskError: It cannot be removed.
    """
    with disk_errors(layout.root):
        for folder in layout.root.glob(f"{UNFINISHED_PREFIX}*"):
            shutil.rmtree(folder)


def add_document(layout: ImageLayout, title: str, data: bytes, media_type: str) -> Descriptor:
    """Store a small file and return its layer descriptor.

    Raises:
        DiskError: The disk is full or not writable.
    """
    return _titled(layout.add_bytes(data, media_type), title)


def add_manifest(layout: ImageLayout, config: BundleConfig, layers: list[Descriptor]) -> Descriptor:
    """Store the configuration, completed by the chunk table, and the manifest; return the manifest's descriptor.

    Args:
        layout: Where the layers already are.
        config: The configuration; its ``chunks`` are computed here.
        layers: Descriptors from ``add_tensors`` and ``add_document``, in the order they shall be listed.

    Raises:
        DiskError: The disk is full or not writable.
    """
    chunks = {
        layer.digest: chunk_digests(layout.blob_path(layer.digest), config.chunk_bytes)
        for layer in layers
        if layer.size > config.chunk_bytes
    }
    complete = config.model_copy(update={"chunks": chunks})
    config_descriptor = layout.add_bytes(complete.to_bytes(), CONFIG_MEDIA_TYPE)
    data = Manifest(config=config_descriptor, layers=layers).to_bytes()
    descriptor = manifest_descriptor(data)
    return layout.add_bytes(data, descriptor.media_type)


@contextlib.contextmanager
def serialization_errors() -> Iterator[None]:
    """Turn the system errors that safetensors reports as text ("… (os error 28)") back into ``OSError``.

    Raises:
        OSError: Writing failed; ``disk_errors`` around this makes it a ``DiskError``.
    """
    try:
        yield
    except safetensors.SafetensorError as error:
        if (number := re.search(r"\(os error (\d+)\)", str(error))) is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def _titled(descriptor: Descriptor, title: str) -> Descriptor:
    return descriptor.model_copy(update={"annotations": {TITLE_ANNOTATION: title}})
