"""A store of published bundles with its database, without a service around it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from cloud_service.storage.audit import AuditLog, Author
from cloud_service.storage.bundles import BundleStore
from cloud_service.storage.catalog import Catalog
from cloud_service.storage.database import open_database, writing
from cloud_service.storage.keys import KeyStore
from cloud_service.storage.signing import BundleSigner
from cloud_service.storage.signing_keys import SigningKey
from shared.api import PublishedTag
from shared.bundle.layout import ImageLayout
from shared.bundle.manifest import Descriptor

KEY = SigningKey(Ed25519PrivateKey.from_private_bytes(b"k" * 32))


class Shelf(NamedTuple):
    """``store`` changes what ``catalog`` reads; ``folder`` holds database, layout and reports."""

    folder: Path
    engine: sa.Engine
    store: BundleStore
    catalog: Catalog
    keys: KeyStore
    log: AuditLog

    @property
    def layout(self) -> ImageLayout:
        return self.store.layout

    def publish(self, name: str, tag: str, manifest: Descriptor, author: Author | None = None) -> PublishedTag:
        """Validate and publish in a transaction of its own."""
        bundle = self.store.validate(manifest)
        with writing(self.engine) as connection:
            return self.store.publish(connection, name, tag, bundle, author or Author())

    def variant(self, manifest: Descriptor, spaces: int) -> Descriptor:
        """Another manifest of the same blobs: one that differs in white space alone."""
        data = self.layout.blob_path(manifest.digest).read_bytes()
        return self.layout.add_bytes(
            data.replace(b'"layers":[', b'"layers":' + b" " * spaces + b"[", 1), manifest.media_type
        )


def make_shelf(folder: Path, *, immutable_tags: tuple[str, ...] = ()) -> Shelf:
    """Open a shelf in ``folder``; dispose its engine at the end."""
    engine = open_database(folder / "jobs.sqlite3")
    layout = ImageLayout.create(folder / "store")
    pem = KEY.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "signing-key.pem").write_bytes(pem)  # where commands on this folder look for it
    store = BundleStore(engine, layout, folder / "reports", BundleSigner(layout, KEY), immutable_tags)
    return Shelf(folder, engine, store, Catalog(engine, layout), KeyStore(engine), AuditLog(engine))


def copy_blobs(source: ImageLayout, folder: Path) -> None:
    """Put the blobs of a layout into the store of a folder, with nothing that names them."""
    shutil.copytree(source.root, folder / "store")
    (folder / "store" / "index.json").unlink()
