"""The application in this process, without workers, over a store that holds one published bundle."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from fastapi.testclient import TestClient

from cloud_service.app import Service, create_app, open_service
from cloud_service.settings import Settings
from cloud_service.storage.audit import Author
from cloud_service.storage.database import writing
from cloud_service.storage.keys import Scope
from shared.bundle.layout import ImageLayout


class Api(NamedTuple):
    """A client with an admin key, and the service behind it."""

    client: httpx.Client
    service: Service
    digest: str

    def headers(self, *scopes: Scope) -> dict[str, str]:
        """Headers of a new key with these scopes."""
        return {"Authorization": f"Bearer {self.service.keys.create('', scopes, ['*'])[1]}"}


@pytest.fixture(scope="session")
def _published(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Any) -> Iterator[Api]:
    folder = tmp_path_factory.mktemp("api")
    for name in ("models/tiny", "data"):
        (folder / name).mkdir(parents=True)
    shutil.copytree(tiny_bundle.layout.root, folder / "data" / "store")
    (folder / "data" / "store" / "index.json").unlink()
    settings = Settings(data=folder / "data", model_roots=(folder / "models",), min_free_bytes=0, poll_seconds=0.02)
    with open_service(settings) as service:
        manifest = ImageLayout(tiny_bundle.layout.root).resolve(tiny_bundle.reference)
        with writing(service.engine) as connection:
            bundle = service.bundles.validate(manifest)
            service.bundles.publish(connection, "team/tiny", "latest", bundle, Author())
        key = service.keys.create_first()
        # Without "with", the application's lifespan does not run: no worker takes the jobs that tests make.
        client = TestClient(create_app(service), headers={"Authorization": f"Bearer {key}"})
        yield Api(client, service, manifest.digest)
        client.close()


@pytest.fixture
def api(_published: Api) -> Api:
    """The shared application; jobs that tests make stay queued."""
    return _published


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder that does not exist yet."""
    return tmp_path / "data"
