"""What an earlier service published, in the ``index.json`` of its store, is published by this one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from shelf import KEY, Shelf, make_shelf

from cloud_service.app import open_service
from cloud_service.settings import Settings
from cloud_service.storage.audit import Author
from cloud_service.storage.index_import import import_index
from shared.api import AuditAction
from shared.bundle.layout import ImageLayout
from shared.bundle.manifest import Descriptor
from shared.bundle.signature import publish_signature, sign, signature_tag
from shared.errors import Conflict, NotFound


@pytest.fixture
def old(tmp_path: Path, tiny_bundle: Any, manifest: Descriptor) -> Descriptor:
    """A store of before: ``tiny:latest`` names a second bundle, whose first is signed but has no tag any more."""
    shutil.copytree(tiny_bundle.layout.root, tmp_path / "store")
    layout = ImageLayout(tmp_path / "store")
    data = layout.blob_path(manifest.digest).read_bytes()
    moved_on = layout.add_bytes(data.replace(b'"layers":[', b'"layers": [', 1), manifest.media_type)
    layout.update({"tiny:latest": moved_on, "team/tiny:v1": moved_on})
    for name, bundle in (("tiny", manifest), ("tiny", moved_on), ("team/tiny", moved_on)):
        artifact = publish_signature(layout, bundle, sign(KEY.private, bundle.digest))
        layout.tag(f"{name}:{signature_tag(bundle.digest)}", artifact)
    return moved_on


@pytest.fixture
def shelf(tmp_path: Path, old: Descriptor) -> Any:
    made = make_shelf(tmp_path)
    yield made
    made.engine.dispose()


def test_tags_signatures_and_bundles_without_a_tag_stay_readable(
    shelf: Shelf, old: Descriptor, manifest: Descriptor
) -> None:
    index = (shelf.layout.root / "index.json").read_bytes()
    assert import_index(shelf.engine, shelf.layout, shelf.folder / "reports") == 2
    assert [(row.name, row.tag, row.digest) for row in shelf.catalog.page()] == [
        ("team/tiny", "v1", old.digest),
        ("tiny", "latest", old.digest),
    ]
    assert shelf.catalog.manifest("tiny", manifest.digest).digest == manifest.digest
    for digest in (manifest.digest, old.digest):
        assert len(shelf.catalog.signatures_of("tiny", digest)) == 1
        assert shelf.catalog.manifest("tiny", signature_tag(digest)).path.is_file()
    with pytest.raises(NotFound):
        shelf.catalog.manifest("team/tiny", manifest.digest)
    assert (shelf.layout.root / "index.json").read_bytes() == index


def test_the_index_is_imported_once_so_what_was_deleted_since_stays_deleted(shelf: Shelf, old: Descriptor) -> None:
    import_index(shelf.engine, shelf.layout, shelf.folder / "reports")
    shelf.store.delete_bundle("team/tiny", old.digest, Author())
    assert import_index(shelf.engine, shelf.layout, shelf.folder / "reports") == 0
    assert [row.name for row in shelf.catalog.page()] == ["tiny"]
    assert [entry.action for entry in shelf.log.newest(limit=2)] == [AuditAction.DELETE_BUNDLE, AuditAction.DELETE_TAG]


@pytest.mark.parametrize("tag", ["v1.sig", "sha256-.sig", "sha256-" + "0" * 63 + ".sig", "sha512-" + "0" * 64 + ".sig"])
def test_a_tag_that_only_looks_like_a_signatures_hides_nothing(shelf: Shelf, old: Descriptor, tag: str) -> None:
    shelf.layout.tag(f"odd:{tag}", old)
    assert import_index(shelf.engine, shelf.layout, shelf.folder / "reports") == 2


def test_a_bundle_that_cannot_be_read_does_not_stop_the_others(shelf: Shelf, old: Descriptor) -> None:
    shelf.layout.tag("broken:latest", shelf.layout.add_bytes(b"{}", old.media_type))
    assert import_index(shelf.engine, shelf.layout, shelf.folder / "reports") == 2


def test_a_service_imports_the_index_when_it_first_opens_the_folder(tmp_path: Path, old: Descriptor) -> None:
    pem = KEY.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "signing-key.pem").write_bytes(pem)
    for _ in range(2):
        with open_service(Settings(data=tmp_path)) as service:
            assert service.catalog.manifest("team/tiny", "v1").digest == old.digest


def test_a_key_that_was_lost_before_the_import_is_missed(tmp_path: Path, old: Descriptor) -> None:
    needed = f"{KEY.fingerprint}, which devices have pinned"
    with pytest.raises(Conflict, match=needed), open_service(Settings(data=tmp_path)):
        pass
