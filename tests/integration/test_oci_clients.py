"""The clients that people have: skopeo, Debian's docker-registry and oras-py, unchanged, and our device behind them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import oras.client
import pytest
from served_shelf import Served, running_registry, serving_shelf
from shelf import KEY, copy_blobs, make_shelf

from shared.bundle.layout import ImageLayout
from shared.bundle.signature import fingerprint_of, signature_tag
from shared.bundle.statement import verify_release

PUBLISHER = fingerprint_of(KEY.private.public_key().public_bytes_raw())


class Service(NamedTuple):
    """A running service that has published ``team/tiny:latest``."""

    host: str
    key: str
    digest: str

    @property
    def image(self) -> str:
        return f"docker://{self.host}/team/tiny"

    @property
    def tags(self) -> tuple[str, str]:
        """The bundle's tag and its signature's."""
        return "latest", signature_tag(self.digest)

    def read(self, *side: str) -> list[str]:
        """Skopeo's options for reading from here; ``side`` is ``src`` where a command has two sides."""
        prefix = "".join(f"{word}-" for word in side)
        return [f"--{prefix}creds", f"any:{self.key}", f"--{prefix}tls-verify=false"]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Any) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("data")
    copy_blobs(tiny_bundle.layout, folder)
    shelf = make_shelf(folder)
    manifest = tiny_bundle.layout.resolve(tiny_bundle.reference).model_copy(update={"annotations": None})
    shelf.publish("team/tiny", "latest", manifest)
    shelf.publish("other", "v1", manifest)
    shelf.engine.dispose()
    with serving_shelf(folder) as served:
        assert isinstance(served, Served)
        yield Service(served.host, served.key, manifest.digest)


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory, service: Service) -> Iterator[str]:
    """A docker-registry that skopeo copied the bundle and its signature to, as ``mirror/tiny``."""
    with running_registry(tmp_path_factory.mktemp("other") / "registry") as host:
        for tag in service.tags:
            target = ["--dest-tls-verify=false", f"{service.image}:{tag}", f"docker://{host}/mirror/tiny:{tag}"]
            skopeo("copy", *service.read("src"), *target)
        yield host


def skopeo(*words: str, fails: bool = False) -> str:
    """Run skopeo; return what it prints, or what it complains of where it shall fail."""
    done = subprocess.run(["skopeo", "--insecure-policy", *words], capture_output=True, text=True, timeout=120)
    assert (done.returncode != 0) is fails, done.stderr
    return done.stderr if fails else done.stdout


def device(home: Path, *words: str) -> dict[str, Any]:
    """Run ``zo-device``."""
    program = "import sys; from device_client.cli import main; sys.exit(main())"
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), "ZO_DEVICE_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", program, "--json", *words], capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_skopeo_logs_in_by_the_challenge_and_lists_tags(service: Service) -> None:
    listed = json.loads(skopeo("list-tags", *service.read(), service.image))
    assert listed["Tags"] == sorted(service.tags)


def test_skopeo_keeps_a_login_and_uses_it(service: Service, tmp_path: Path) -> None:
    kept = ["--authfile", str(tmp_path / "auth.json"), "--tls-verify=false"]
    assert "Login Succeeded" in skopeo("login", *kept, "--username", "any", "--password", service.key, service.host)
    assert json.loads(skopeo("list-tags", *kept, service.image))["Tags"] == sorted(service.tags)


def test_skopeo_shows_the_reasons_that_we_give(service: Service) -> None:
    wrong = ["--creds", "any:zo_x_y", "--tls-verify=false"]
    assert "a key that is not valid here" in skopeo("list-tags", *wrong, service.image, fails=True)
    assert "no key" in skopeo("list-tags", "--tls-verify=false", service.image, fails=True)
    absent = skopeo("inspect", "--raw", *service.read(), f"{service.image}:absent", fails=True)
    assert "manifest unknown: no bundle 'team/tiny' with the reference 'absent'" in absent


def test_what_skopeo_copies_to_a_folder_is_imported_with_its_signature(service: Service, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    for tag in service.tags:
        skopeo("copy", *service.read("src"), f"{service.image}:{tag}", f"oci:{folder}:team/tiny:{tag}")
    assert ImageLayout(folder).resolve("team/tiny:latest").digest == service.digest
    imported = device(tmp_path / "home", "import", str(folder), "--trusted-key", PUBLISHER)
    assert (imported["reference"], imported["digest"]) == ("team/tiny:latest", service.digest)
    assert imported["publisher"] == PUBLISHER


def test_a_bundle_keeps_its_digest_in_another_registry_and_is_pulled_from_there(
    service: Service, mirror: str, tmp_path: Path
) -> None:
    raw = skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{mirror}/mirror/tiny:latest")
    assert "sha256:" + hashlib.sha256(raw.encode()).hexdigest() == service.digest
    place = f"http://{mirror}/mirror/tiny"
    trust = ["--trusted-key", PUBLISHER, "--published-as", "team/tiny:latest"]
    pulled = device(tmp_path / "home", "pull", place, *trust)
    assert (pulled["digest"], pulled["publisher"]) == (service.digest, PUBLISHER)


def test_a_bundle_comes_back_from_another_registry_into_a_folder(service: Service, mirror: str, tmp_path: Path) -> None:
    for tag in service.tags:
        source = ["--src-tls-verify=false", f"docker://{mirror}/mirror/tiny:{tag}"]
        skopeo("copy", *source, f"oci:{tmp_path / 'back'}:tiny:{tag}")
    trust = ["--trusted-key", PUBLISHER, "--published-as", "team/tiny:latest"]
    imported = device(tmp_path / "home", "import", str(tmp_path / "back"), *trust)
    assert (imported["reference"], imported["digest"]) == ("tiny:latest", service.digest)


def test_skopeo_mirrors_a_whole_name_with_its_signatures(service: Service, tmp_path: Path) -> None:
    words = ["sync", "--src", "docker", "--dest", "dir", *service.read("src"), f"{service.host}/team/tiny"]
    skopeo(*words, str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"tiny:{tag}" for tag in service.tags)


def test_a_registry_that_caches_ours_logs_in_and_serves_the_bundle(service: Service, tmp_path: Path) -> None:
    with running_registry(tmp_path / "cache", cache_of=Served(service.host, service.key)) as host:
        place = f"docker://{host}/team/tiny:latest"
        skopeo("copy", "--src-tls-verify=false", place, f"oci:{tmp_path / 'copy'}:tiny:latest")
    assert ImageLayout(tmp_path / "copy").resolve("tiny:latest").digest == service.digest


@pytest.mark.parametrize("options", [{}, {"auth_backend": "basic"}], ids=["default", "basic"])
def test_oras_logs_in_lists_tags_and_pulls(service: Service, tmp_path: Path, options: dict[str, str]) -> None:
    client = oras.client.OrasClient(hostname=service.host, insecure=True, **options)
    config = str(tmp_path / "docker.json")
    client.login(username="any", password=service.key, hostname=service.host, config_path=config)
    assert client.get_tags(f"{service.host}/team/tiny") == sorted(service.tags)
    files = client.pull(f"{service.host}/team/tiny:latest", outdir=str(tmp_path / "out"), config_path=config)
    manifest = client.get_manifest(f"{service.host}/team/tiny:latest")
    pulled = {Path(file).name: Path(file).read_bytes() for file in files}
    assert {
        layer["annotations"]["org.opencontainers.image.title"]: layer["digest"] for layer in manifest["layers"]
    } == {name: "sha256:" + hashlib.sha256(data).hexdigest() for name, data in pulled.items()}


def test_oras_pulls_with_the_login_that_another_process_kept(service: Service, tmp_path: Path) -> None:
    config = str(tmp_path / "docker.json")
    first, second = (oras.client.OrasClient(hostname=service.host, insecure=True) for _ in range(2))
    first.login(username="any", password=service.key, hostname=service.host, config_path=config)
    files = second.pull(f"{service.host}/team/tiny:latest", outdir=str(tmp_path / "out"), config_path=config)
    assert files
    assert {Path(file).parent for file in files} == {tmp_path / "out"}


def test_oras_is_told_that_nothing_is_pushed_here(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # oras pushes files of its working directory
    (tmp_path / "file.txt").write_text("text")
    client = oras.client.OrasClient(hostname=service.host, insecure=True)
    client.auth.set_basic_auth("any", service.key)
    with pytest.raises(ValueError, match="UNSUPPORTED"):
        client.push(files=["file.txt"], target=f"{service.host}/team/tiny:pushed")
    assert client.get_tags(f"{service.host}/team/tiny") == sorted(service.tags)


def test_the_catalog_and_the_referrers_of_a_live_service_lead_to_the_signature(service: Service) -> None:
    with httpx.Client(base_url=f"http://{service.host}", auth=("any", service.key)) as client:
        assert client.get("/v2/_catalog").json() == {"repositories": ["other", "team/tiny"]}
        (signature,) = client.get(f"/v2/team/tiny/referrers/{service.digest}").json()["manifests"]
        manifest = client.get(f"/v2/team/tiny/manifests/{signature['digest']}").json()
        envelope = client.get(f"/v2/team/tiny/blobs/{manifest['layers'][0]['digest']}").content
    assert manifest["subject"]["digest"] == verify_release(envelope).statement.digest == service.digest
