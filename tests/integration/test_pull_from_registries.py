"""``pull`` from Debian's docker-registry: open, with Basic, with tokens; signatures by tag and by list."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import oras.client
import pytest
from memory_folder import memory_folder
from pulling_device import Device
from served_shelf import running_registry
from simulated_server import sign_reference
from tiny_bundle import make_tiny_bundle
from token_service import SERVICE, TokenService, token_service

from device_client.download.authentication import Access
from device_client.download.docker_login import Login, read_docker_login
from device_client.download.registry import INDEX_MEDIA_TYPE, Registry
from device_client.download.transport import HttpTransport
from shared.bundle.layout import ImageLayout
from shared.bundle.manifest import MANIFEST_MEDIA_TYPE, parse_artifact
from shared.bundle.signature import signature_tag
from shared.bundle.signature_artifact import RELEASE_TYPE
from shared.errors import IntegrityError, NotFound, Unauthorized

PASSWORD = "kept secret"
HTPASSWD = "user:$2b$04$abcdefghijklmnopqrstuuPsWwVpA2woNh8PRfP2AaQVtM6QJU9fq\n"  # bcrypt of the password
LOGIN = Login("user", PASSWORD, "this test")


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with memory_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def published(folder: Path) -> ImageLayout:
    layout = make_tiny_bundle(folder / "published").layout
    sign_reference(layout, "tiny:latest")
    return layout


@pytest.fixture(scope="module")
def registry(folder: Path, published: ImageLayout) -> Iterator[str]:
    """An open registry that skopeo copied the bundle and its signature to."""
    digest = published.resolve("tiny:latest").digest
    with running_registry(folder / "open") as host:
        for tag in ("latest", signature_tag(digest)):
            source, target = f"oci:{published.root}:tiny:{tag}", f"docker://{host}/tiny:{tag}"
            command = ["skopeo", "--insecure-policy", "copy", "--dest-tls-verify=false", source, target]
            subprocess.run(command, check=True, capture_output=True, timeout=60)
        yield host


@pytest.fixture
def device() -> Iterator[Device]:
    transport = HttpTransport()
    with memory_folder() as home:
        yield Device(home, transport)
    transport.close()


def put(host: str, name: str, reference: str, data: bytes, media_type: str) -> None:
    """Push a manifest."""
    url = f"http://{host}/v2/{name}/manifests/{reference}"
    httpx.put(url, content=data, headers={"Content-Type": media_type}).raise_for_status()


def test_a_bundle_that_skopeo_copied_is_pulled_with_its_signature(device: Device, registry: str) -> None:
    pulled = device.pull(f"http://{registry}/tiny")
    assert pulled.publisher is not None
    assert device.pull(f"http://{registry}/tiny").was_complete


def test_a_signature_that_only_the_list_of_referrers_names_is_found(
    device: Device, registry: str, published: ImageLayout
) -> None:
    """oras pushes the blobs; the list lies under the tag that clients keep it by where a registry has no such API."""
    manifest, artifact = (published.resolve(f"tiny:{tag}") for tag in ("latest", _signature(published)))
    client = oras.client.OrasClient(hostname=registry, insecure=True)
    container = client.get_container(f"{registry}/listed:latest")
    for named in (manifest, artifact):
        for blob in parse_artifact(published.blob_path(named.digest).read_bytes()).blobs:
            layer = {"digest": blob.digest, "size": blob.size, "mediaType": blob.media_type}
            client.upload_blob(str(published.blob_path(blob.digest)), container, layer)
    put(registry, "listed", "latest", published.blob_path(manifest.digest).read_bytes(), MANIFEST_MEDIA_TYPE)
    put(registry, "listed", artifact.digest, published.blob_path(artifact.digest).read_bytes(), MANIFEST_MEDIA_TYPE)
    entry = {"mediaType": MANIFEST_MEDIA_TYPE, "digest": artifact.digest, "size": artifact.size}
    entries = [{**entry, "artifactType": RELEASE_TYPE}]
    index = json.dumps({"schemaVersion": 2, "mediaType": INDEX_MEDIA_TYPE, "manifests": entries}).encode()
    with pytest.raises(IntegrityError, match="no signature"):
        device.pull(f"http://{registry}/listed", published_as="tiny:latest")
    put(registry, "listed", manifest.digest.replace(":", "-"), index, INDEX_MEDIA_TYPE)
    assert device.pull(f"http://{registry}/listed", published_as="tiny:latest").publisher is not None


def _signature(published: ImageLayout) -> str:
    return signature_tag(published.resolve("tiny:latest").digest)


def test_an_unknown_tag_is_not_found_and_the_tags_there_are_can_be_listed(device: Device, registry: str) -> None:
    with pytest.raises(NotFound):
        device.pull(f"http://{registry}/tiny:v9")
    asking = Registry(device.transport, f"http://{registry}")
    assert asking.tags("tiny") == ["latest"]
    with pytest.raises(NotFound, match="no list of bundles"):
        asking.bundles()


def test_basic_wants_a_login_and_takes_the_one_that_docker_keeps(device: Device, registry: str, folder: Path) -> None:
    (folder / "htpasswd").write_text(HTPASSWD)
    auth = {"htpasswd": {"realm": "tests", "path": str(folder / "htpasswd")}}
    with running_registry(folder / "basic", auth=auth, same_files=folder / "open") as host:
        with pytest.raises(Unauthorized, match="--username NAME"):
            device.pull(f"http://{host}/tiny")
        wrong = base64.b64encode(b"user:wrong").decode()
        kept = base64.b64encode(f"user:{PASSWORD}".encode()).decode()
        for auth_text, is_accepted in ((wrong, False), (kept, True)):
            (folder / "config.json").write_text(json.dumps({"auths": {host: {"auth": auth_text}}}))
            login = read_docker_login(folder / "config.json", f"http://{host}")
            if is_accepted:
                assert device.pull(f"http://{host}/tiny", login=login).publisher is not None
            else:
                with pytest.raises(Unauthorized):
                    device.pull(f"http://{host}/tiny", login=login)


@pytest.fixture
def tokens(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[TokenService]:
    logins = frozenset({f"user:{PASSWORD}"})
    with token_service(tmp_path, lets_strangers_in=request.param, logins=logins) as service:
        yield service


@pytest.mark.parametrize("tokens", [True], indirect=True)
def test_a_registry_that_gives_tokens_to_strangers_is_pulled_from_without_a_login(
    device: Device, registry: str, folder: Path, tokens: TokenService
) -> None:
    with running_registry(folder / "public", auth=tokens.configuration(), same_files=folder / "open") as host:
        assert device.pull(f"http://{host}/tiny").publisher is not None
    assert tokens.asked == [({"service": [SERVICE], "scope": ["repository:tiny:pull"]}, None)]


@pytest.mark.parametrize("tokens", [False], indirect=True)
def test_a_registry_whose_tokens_want_a_login_gets_it_at_the_token_service_alone(
    device: Device, registry: str, folder: Path, tokens: TokenService
) -> None:
    with running_registry(folder / "private", auth=tokens.configuration(), same_files=folder / "open") as host:
        with pytest.raises(Unauthorized, match="--username NAME"):
            device.pull(f"http://{host}/tiny")
        with pytest.raises(Unauthorized, match=r"the token service http://127.* refuses the login of 'user'"):
            device.pull(f"http://{host}/tiny", login=Login("user", "wrong", "this test"))
        assert device.pull(f"http://{host}/tiny", login=LOGIN).publisher is not None
    assert len(tokens.asked) == 3


def test_a_key_is_the_password_of_nobody(device: Device) -> None:
    """Without a user name a key is presented as it is and no challenge is answered with it."""
    access = Access(device.transport, "http://models.test", api_key="zo_secret", find_login=lambda: LOGIN)
    assert access.learn('Basic realm="x"', rejected="Bearer zo_secret") is False
    assert access.authorization == "Bearer zo_secret"
