"""The application in this process, without workers, over a store that holds one published bundle."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from fastapi.testclient import TestClient
from shelf import copy_blobs

from cloud_service.app import Service, create_app, open_service
from cloud_service.settings import Settings
from cloud_service.storage.audit import Author
from cloud_service.storage.database import writing
from cloud_service.storage.keys import Scope


class Api(NamedTuple):
    """A client with an admin key, and the service behind it."""

    client: httpx.Client
    service: Service
    digest: str

    def headers(self, *scopes: Scope, publishes: Sequence[str] = ("*",)) -> dict[str, str]:
        """Headers of a new key with these scopes."""
        return {"Authorization": f"Bearer {self.service.keys.create('', scopes, publishes)[1]}"}

    def publish(self, name: str, tag: str, variant: int = 0) -> str:
        """Publish the tiny bundle, or one that differs from it in white space alone, and return its digest."""
        bundles, layout = self.service.bundles, self.service.bundles.layout
        data = layout.blob_path(self.digest).read_bytes()
        changed = data.replace(b'"layers":[', b'"layers":' + b" " * variant + b"[", 1)
        bundle = bundles.validate(layout.add_bytes(changed, "application/vnd.oci.image.manifest.v1+json"))
        with writing(self.service.engine) as connection:
            return bundles.publish(connection, name, tag, bundle, Author()).digest


@contextlib.contextmanager
def opened_api(folder: Path, tiny_bundle: Any, **settings: Any) -> Iterator[Api]:
    """A service on a new folder, with ``team/tiny:latest`` published."""
    for name in ("models/tiny", "data"):
        (folder / name).mkdir(parents=True)
    copy_blobs(tiny_bundle.layout, folder / "data")
    given = {"data": folder / "data", "model_roots": (folder / "models",), "min_free_bytes": 0, "poll_seconds": 0.02}
    with open_service(Settings(**given, **settings)) as service:
        api = Api(TestClient(create_app(service)), service, tiny_bundle.digest)
        api.publish("team/tiny", "latest")
        # Without "with", the application's lifespan does not run: no worker takes the jobs that tests make.
        api.client.headers["Authorization"] = f"Bearer {service.keys.create_first()}"
        yield api
        api.client.close()


@pytest.fixture(scope="session")
def _published(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Any) -> Iterator[Api]:
    with opened_api(tmp_path_factory.mktemp("api"), tiny_bundle) as api:
        yield api


@pytest.fixture
def api(_published: Api) -> Api:
    """The shared application; jobs that tests make stay queued, and nobody changes what is published."""
    return _published


@pytest.fixture
def own_api(tmp_path: Path, tiny_bundle: Any) -> Iterator[Api]:
    """An application of the test's own, where tags such as ``v1`` are immutable."""
    with opened_api(tmp_path, tiny_bundle, immutable_tags=("v*",)) as api:
        yield api


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder that does not exist yet."""
    return tmp_path / "data"
