"""The store: atomic references, verified small blobs, disk errors that say what to do."""

from __future__ import annotations

import errno
import json
import threading
from pathlib import Path

import pytest

from shared.bundle.digest import digest_of_bytes
from shared.bundle.layout import ImageLayout
from shared.durable_files import disk_errors, free_bytes, write_atomically
from shared.errors import DigestMismatch, DiskError, InvalidDigest, InvalidManifest, LimitExceeded, NotFound


@pytest.fixture
def layout(tmp_path: Path) -> ImageLayout:
    return ImageLayout.create(tmp_path / "store")


def test_it_is_an_oci_image_layout(layout):
    manifest = layout.add_bytes(b"{}", "application/vnd.oci.image.manifest.v1+json")
    layout.tag("a/b:v1", manifest)
    assert json.loads((layout.root / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads((layout.root / "index.json").read_bytes())
    assert index["schemaVersion"] == 2
    assert index["manifests"] == [
        {
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": digest_of_bytes(b"{}"),
            "size": 2,
            "annotations": {"org.opencontainers.image.ref.name": "a/b:v1"},
        }
    ]


def test_a_blob_is_named_by_its_bytes_and_kept_once(layout):
    first, second = layout.add_bytes(b"x", "a/b"), layout.add_bytes(b"x", "a/b")
    assert first == second
    assert layout.has_blob(first.digest)
    assert [path.read_bytes() for path in layout.blobs.iterdir()] == [b"x"]


def test_a_damaged_blob_is_replaced(layout):
    path = layout.blob_path(layout.add_bytes(b"data", "a/b").digest)
    path.write_bytes(b"dat")
    assert layout.blob_path(layout.add_bytes(b"data", "a/b").digest).read_bytes() == b"data"


def test_a_file_moves_in_and_must_have_the_expected_digest(layout, tmp_path):
    source = tmp_path / "file"
    source.write_bytes(b"data")
    with pytest.raises(DigestMismatch):
        layout.add_file(source, "a/b", expected=digest_of_bytes(b"other"))
    assert source.exists()
    descriptor = layout.add_file(source, "a/b", expected=digest_of_bytes(b"data"))
    assert not source.exists()
    assert layout.read_blob(descriptor.digest, max_bytes=4) == b"data"


def test_a_small_blob_is_verified_when_read(layout):
    digest = layout.add_bytes(b"data", "a/b").digest
    with pytest.raises(LimitExceeded):
        layout.read_blob(digest, max_bytes=3)
    layout.blob_path(digest).write_bytes(b"dat!")
    with pytest.raises(DigestMismatch, match="other bytes"):
        layout.read_blob(digest, max_bytes=4)
    with pytest.raises(NotFound):
        layout.read_blob(digest_of_bytes(b"none"), max_bytes=4)


@pytest.mark.parametrize("digest", ["sha256:../../etc/passwd", "sha256:" + "0" * 63, "md5:" + "0" * 64, "", None])
def test_no_path_is_built_from_a_malformed_digest(layout, digest):
    with pytest.raises(InvalidDigest):
        layout.blob_path(digest)


def test_references_are_set_replaced_and_removed_together(layout):
    one, two = layout.add_bytes(b"1", "a/b"), layout.add_bytes(b"2", "a/b")
    layout.update({"m:1": one, "m:2": two})
    layout.update({"m:1": two, "m:2": None})
    assert {name: entry.digest for name, entry in layout.references().items()} == {"m:1": two.digest}
    assert layout.resolve("m:1").size == 1
    with pytest.raises(NotFound, match="one of: m:1"):
        layout.resolve("m:2")


def test_writers_in_parallel_lose_no_reference(layout):
    blob = layout.add_bytes(b"1", "a/b")
    names = [f"m:{index}" for index in range(20)]
    threads = [threading.Thread(target=layout.tag, args=(name, blob)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(layout.references()) == sorted(names)


def test_a_damaged_index_is_named(layout):
    (layout.root / "index.json").write_text("{}")
    with pytest.raises(InvalidManifest, match=r"index\.json"):
        layout.references()


def test_a_failed_write_leaves_the_old_file_and_no_temporary(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with pytest.raises(TypeError):
        write_atomically(path, "text, not bytes")
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("file", b"old")]


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "no space left"), (errno.EDQUOT, "no space left"), (errno.EROFS, "cannot be written")],
)
def test_disk_errors_say_where_and_what_to_do(tmp_path, number, words):
    with pytest.raises(DiskError, match=words) as caught, disk_errors(tmp_path / "missing" / "file"):
        raise OSError(number, "the system's words")
    assert caught.value.exit_code == 7
    assert caught.value.next_step


def test_other_errors_of_the_system_pass_unchanged(tmp_path):
    with pytest.raises(IsADirectoryError), disk_errors(tmp_path):
        raise OSError(errno.EISDIR, "is a directory")


def test_free_bytes_are_those_of_the_nearest_existing_parent(tmp_path):
    assert free_bytes(tmp_path / "a" / "b") > 0


def test_a_folder_that_cannot_be_made_is_a_disk_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="cannot be written"):
        ImageLayout.create(tmp_path / "file" / "store")


@pytest.mark.parametrize("data", [b"[" * 200_000, b"[]", b"{", b'{"manifests": 1}', b'{"manifests": [{"digest": []}]}'])
def test_an_index_that_is_none_is_refused(layout, data):
    (layout.root / "index.json").write_bytes(data)
    with pytest.raises(InvalidManifest):
        layout.references()


def test_an_index_is_read_up_to_its_limit(layout):
    empty = b'{"manifests": []}'
    (layout.root / "index.json").write_bytes(empty.ljust(4 * 2**20))
    assert layout.references() == {}
    (layout.root / "index.json").write_bytes(empty.ljust(4 * 2**20 + 1))
    with pytest.raises(LimitExceeded):
        layout.references()


def test_an_index_that_could_not_be_read_again_is_not_written(layout):
    manifest = layout.add_bytes(b"{}", "application/vnd.oci.image.manifest.v1+json")
    layout.tag("a:v1", manifest)
    with pytest.raises(LimitExceeded):
        layout.update({f"{index:0>1000}:v1": manifest for index in range(5000)})
    assert set(layout.references()) == {"a:v1"}
