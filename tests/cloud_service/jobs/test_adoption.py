"""What the service takes over from a job's workspace, and what it refuses to be led to."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cloud_service.jobs.adoption import adopt_bundle
from cloud_service.jobs.untrusted_files import read_untrusted
from shared.bundle.layout import ImageLayout
from shared.bundle.manifest import Descriptor
from shared.bundle.read import read_bundle
from shared.errors import BlobTruncated, DigestMismatch, IntegrityError, LimitExceeded


class Places(NamedTuple):
    """A job's folder with a bundle in its workspace, and the service's empty store."""

    folder: Path
    made: ImageLayout
    store: ImageLayout
    manifest: Descriptor

    def adopt(self) -> None:
        adopt_bundle(self.folder, "workspace/store", self.manifest, self.store)

    def largest(self) -> Path:
        return max(self.made.blobs.iterdir(), key=lambda path: path.stat().st_size)


@pytest.fixture
def places(tmp_path: Path, tiny_bundle: Any) -> Places:
    made = ImageLayout(tmp_path / "job" / "workspace" / "store")
    shutil.copytree(tiny_bundle.layout.root, made.root)
    manifest = tiny_bundle.layout.resolve(tiny_bundle.reference)
    return Places(tmp_path / "job", made, ImageLayout.create(tmp_path / "store"), manifest)


def test_a_bundle_is_copied_whole_and_its_source_is_given_up(places: Places) -> None:
    places.adopt()
    assert read_bundle(places.store, places.manifest.digest).digest == places.manifest.digest
    assert list(places.made.blobs.iterdir()) == []
    assert sorted(path.name for path in places.store.root.iterdir()) == ["blobs", "oci-layout"]


def test_an_adoption_that_was_cut_short_is_completed(places: Places) -> None:
    kept = places.largest().read_bytes()
    name = places.largest().name
    places.largest().unlink()
    places.adopt()
    (places.made.blobs / name).write_bytes(kept)
    places.adopt()
    assert read_bundle(places.store, places.manifest.digest).digest == places.manifest.digest


def test_a_second_name_of_a_blob_does_not_reach_the_store(places: Places) -> None:
    second = places.folder / "workspace" / "second"
    os.link(places.largest(), second)
    places.adopt()
    second.write_bytes(b"changed afterwards")
    assert read_bundle(places.store, places.manifest.digest).digest == places.manifest.digest


@pytest.mark.attack
def test_a_blob_that_is_a_link_is_not_followed(places: Places, tmp_path: Path) -> None:
    blob = places.largest()
    shutil.move(blob, tmp_path / "signing-key.pem")
    blob.symlink_to(tmp_path / "signing-key.pem")
    with pytest.raises(IntegrityError, match="cannot be opened"):
        places.adopt()


@pytest.mark.attack
def test_a_folder_that_is_a_link_is_not_followed(places: Places, tmp_path: Path) -> None:
    shutil.move(places.made.root, tmp_path / "elsewhere")
    places.made.root.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IntegrityError, match="cannot be opened"):
        places.adopt()


@pytest.mark.attack
def test_a_fifo_in_the_place_of_a_blob_blocks_nobody(places: Places) -> None:
    blob = places.largest()
    blob.unlink()
    os.mkfifo(blob)
    with pytest.raises(IntegrityError, match="not a regular file"):
        places.adopt()


def test_bytes_that_are_not_what_the_manifest_says_are_not_stored(places: Places) -> None:
    blob = places.largest()
    content = blob.read_bytes()
    blob.write_bytes(content[:-1])
    with pytest.raises(BlobTruncated):
        places.adopt()
    blob.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DigestMismatch):
        places.adopt()
    assert not (places.store.blobs / blob.name).exists()


def test_a_manifest_longer_than_a_reader_accepts_is_not_read(places: Places) -> None:
    manifest = places.manifest.model_copy(update={"size": 4 * 1024 * 1024 + 1})
    with pytest.raises(LimitExceeded):
        adopt_bundle(places.folder, "workspace/store", manifest, places.store)


def test_a_small_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    (tmp_path / "page").write_bytes(b"12345")
    assert read_untrusted(tmp_path, "page", max_bytes=5) == b"12345"
    with pytest.raises(LimitExceeded):
        read_untrusted(tmp_path, "page", max_bytes=4)
    with pytest.raises(FileNotFoundError):
        read_untrusted(tmp_path, "absent/page", max_bytes=4)
