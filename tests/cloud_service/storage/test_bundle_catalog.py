"""Pages of bundles, names and tags; and that the number of publications has no bound that matters."""

from __future__ import annotations

import dataclasses
import hashlib

import pytest
from shelf import Shelf

from cloud_service.storage.audit import Author
from cloud_service.storage.bundle_index import ValidBundle, add_bundle, set_tag
from cloud_service.storage.database import writing
from shared.bundle.manifest import Descriptor
from shared.bundle.signature import signature_tag
from shared.errors import NotFound


def numbered(bundle: ValidBundle, number: int) -> ValidBundle:
    """A bundle of the same blobs under a digest that no file has."""
    digest = "sha256:" + hashlib.sha256(str(number).encode()).hexdigest()
    return dataclasses.replace(bundle, manifest=bundle.manifest.model_copy(update={"digest": digest}))


def all_pages(shelf: Shelf, limit: int, name: str | None = None) -> list[str]:
    listed: list[str] = []
    while page := shelf.catalog.page(after=listed[-1] if listed else None, limit=limit, name=name):
        assert len(page) <= limit
        listed += [f"{summary.name}:{summary.tag}" for summary in page]
    return listed


def test_pages_list_every_tag_once_in_order(shelf: Shelf, manifest: Descriptor) -> None:
    published = [f"{name}:{tag}" for name in ("a", "a-b", "a/b", "b") for tag in ("1", "2", "_", "v1")]
    for reference in reversed(published):
        shelf.publish(*reference.split(":"), manifest)
    for limit in (1, 3, 5, 200):
        assert all_pages(shelf, limit) == published
    assert all_pages(shelf, 3, name="a/b") == ["a/b:1", "a/b:2", "a/b:_", "a/b:v1"]
    assert all_pages(shelf, 3, name="absent") == []


def test_a_page_may_begin_after_what_does_not_exist_any_more(shelf: Shelf, manifest: Descriptor) -> None:
    for tag in ("v1", "v2", "v3"):
        shelf.publish("tiny", tag, manifest)
    shelf.store.delete_tag("tiny", "v2", Author())
    assert [summary.tag for summary in shelf.catalog.page(after="tiny:v2")] == ["v3"]
    assert shelf.catalog.page(after="zzz:v1") == []
    assert len(shelf.catalog.page(after="not a reference")) == 2


def test_a_signature_is_listed_with_the_tags_and_not_with_the_bundles(shelf: Shelf, manifest: Descriptor) -> None:
    shelf.publish("team/tiny", "v1", manifest)
    shelf.publish("team/tiny", "latest", manifest)
    signature = signature_tag(manifest.digest)
    assert [summary.tag for summary in shelf.catalog.page()] == ["latest", "v1"]
    assert shelf.catalog.tags("team/tiny", limit=10) == ["latest", signature, "v1"]
    assert shelf.catalog.tags("team/tiny", after="latest", limit=1) == [signature]
    assert shelf.catalog.names(limit=10) == ["team/tiny"]
    assert shelf.catalog.names(after="team/tiny", limit=10) == []
    with pytest.raises(NotFound):
        shelf.catalog.tags("team", limit=10)


def test_eight_thousand_publications_do_not_stop_the_next(shelf: Shelf, manifest: Descriptor) -> None:
    bundle = shelf.store.validate(manifest)
    with writing(shelf.engine) as connection:
        for number in range(8_000):
            made = numbered(bundle, number)
            add_bundle(connection, f"team/m{number % 50}", made, has_report=False)
            set_tag(connection, f"team/m{number % 50}", f"v{number}", made.manifest.digest)
    shelf.publish("tiny", "latest", manifest)
    assert shelf.catalog.manifest("tiny", "latest").digest == manifest.digest
    assert len(all_pages(shelf, 200)) == 8_001
