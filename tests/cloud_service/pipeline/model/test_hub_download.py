"""Fetching from a hub: a small HTTP server on this machine that answers like one."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from huggingface_hub import constants

from cloud_service.pipeline.model.hub import fetch, find_snapshot, first_line
from cloud_service.pipeline.model.pinned_commit import pinned_snapshot
from cloud_service.pipeline.named_input import NamedInput
from cloud_service.pipeline.opening.identity import resolve
from cloud_service.pipeline.workspace import Workspace
from cloud_service.progress import SilentProgress
from cloud_service.sources import HubModel, SourcePolicy
from shared.api import PrepareRequest
from shared.errors import InvalidModelId, NetworkError, NotFound, Unauthorized, UnsupportedModel

WEIGHTS = safetensors.numpy.save({"w": np.zeros(1, np.float16)})
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub(ThreadingHTTPServer):
    """Serves ``repositories`` (id → file name → bytes) as the hub's API does; other ids are unknown."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.stated_sizes: dict[str, int] = {}
        self.requested: list[str] = []
        self.head = COMMIT
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def _answer(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0].strip("/")
        if path.startswith("api/models/"):
            repository = path.removeprefix("api/models/").partition("/revision/")[0]
            if repository == "org/gated":
                return self._send(403, b"{}", {"X-Error-Code": "GatedRepo"}, with_body)
            if repository == "org/broken":
                return self._send(500, b"{}", {}, with_body)
            files = self.server.repositories.get(repository)
            if files is None:
                return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, with_body)
            sizes = {name: self.server.stated_sizes.get(name, len(data)) for name, data in files.items()}
            siblings = [{"rfilename": name, "size": size} for name, size in sizes.items()]
            body = {"id": repository, "sha": self.server.head, "siblings": siblings}
            return self._send(200, json.dumps(body).encode(), {}, with_body)
        repository, _, name = path.partition(f"/resolve/{COMMIT}/")
        self.server.requested.append(name)
        data = self.server.repositories[repository][name]
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'}  # noqa: S324
        return self._send(200, data, headers, with_body)

    def _send(self, status: int, body: bytes, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body)), "Content-Type": "application/json"}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    server = FakeHub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def policy_of(hub: FakeHub) -> SourcePolicy:
    return SourcePolicy(hub_endpoint=hub.endpoint)


def test_only_the_files_that_are_read_are_fetched(hub: FakeHub) -> None:
    wanted = {"model.safetensors": WEIGHTS, "config.json": b"{}", "merges.txt": b"", "README.md": b"#"}
    unwanted = {"pytorch_model.bin": b"!", "consolidated.safetensors": b"!", "code.py": b"!", "sub/x.json": b"!"}
    hub.repositories["org/tiny"] = wanted | unwanted
    model = HubModel("org/tiny")
    snapshot = find_snapshot(model, policy_of(hub))
    folder = fetch(model, snapshot, policy_of(hub), SilentProgress())
    assert snapshot.commit == COMMIT
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == wanted
    assert set(hub.requested) == set(wanted)


def test_of_a_gguf_file_only_that_file_is_fetched_and_an_absent_one_is_refused_with_those_that_are_there(
    hub: FakeHub,
) -> None:
    hub.repositories["org/tiny-GGUF"] = {"tiny.Q4_0.gguf": b"GGUF4", "tiny.Q8_0.gguf": b"GGUF8", "README.md": b"#"}
    model = HubModel("org/tiny-GGUF", gguf_file="tiny.Q8_0.gguf")
    folder = fetch(model, find_snapshot(model, policy_of(hub)), policy_of(hub), SilentProgress())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"tiny.Q8_0.gguf": b"GGUF8"}
    with pytest.raises(
        UnsupportedModel, match=r"no file other\.gguf\nNeeded: one of tiny\.Q4_0\.gguf, tiny\.Q8_0\.gguf"
    ):
        find_snapshot(HubModel("org/tiny-GGUF", gguf_file="other.gguf"), policy_of(hub))


REQUEST = PrepareRequest.model_validate({"model": "hub:org/tiny", "calibration": {"text": "text.txt"}})


@pytest.fixture
def text_root(tmp_path: Path) -> Path:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "text.txt").write_text("text")
    return tmp_path / "texts"


def test_resumed_a_preparation_stays_at_its_commit_although_the_branch_moved(
    hub: FakeHub, tmp_path: Path, text_root: Path
) -> None:
    hub.repositories["org/tiny"] = {"model.safetensors": WEIGHTS, "config.json": b"{}"}
    policy = SourcePolicy(hub_endpoint=hub.endpoint, text_roots=(text_root,))
    first = resolve(NamedInput.of_preparation(REQUEST), policy, SilentProgress(), workspace=tmp_path / "work")
    Workspace(tmp_path / "work").claim(first.fingerprint)
    hub.head = "f" * 40
    resumed = resolve(NamedInput.of_preparation(REQUEST), policy, SilentProgress(), workspace=tmp_path / "work")
    assert (resumed.revision, resumed.fingerprint) == (COMMIT, first.fingerprint)
    other_revision = find_snapshot(HubModel("org/tiny"), policy)
    assert other_revision.commit == "f" * 40


def test_resumed_a_preparation_needs_no_hub_where_everything_is_cached(
    hub: FakeHub, tmp_path: Path, text_root: Path
) -> None:
    hub.repositories["org/tiny"] = {"model.safetensors": WEIGHTS, "config.json": b"{}"}
    policy = SourcePolicy(hub_endpoint=hub.endpoint, text_roots=(text_root,))
    first = resolve(NamedInput.of_preparation(REQUEST), policy, SilentProgress(), workspace=tmp_path / "work")
    unreachable = replace(policy, hub_endpoint="http://127.0.0.1:9")
    assert (
        resolve(NamedInput.of_preparation(REQUEST), unreachable, SilentProgress(), workspace=tmp_path / "work") == first
    )


def test_the_prefix_of_a_hub_id_is_not_recorded_and_changes_no_fingerprint(hub: FakeHub, text_root: Path) -> None:
    hub.repositories["org/tiny"] = {"model.safetensors": WEIGHTS, "config.json": b"{}"}
    policy = SourcePolicy(hub_endpoint=hub.endpoint, text_roots=(text_root,), hub_namespaces=("org/*",))
    explicit = resolve(NamedInput.of_preparation(REQUEST), policy, SilentProgress())
    plain = resolve(
        NamedInput.of_preparation(REQUEST.model_copy(update={"model": "org/tiny"})), policy, SilentProgress()
    )
    assert explicit == plain
    assert explicit.model_id == "org/tiny"


@pytest.mark.attack
def test_an_unmounted_models_name_reaches_no_hub(hub: FakeHub, text_root: Path) -> None:
    hub.repositories["org/tiny"] = {"model.safetensors": b"a stranger's", "config.json": b"{}"}
    policy = SourcePolicy(hub_endpoint=hub.endpoint, text_roots=(text_root,))
    with pytest.raises(InvalidModelId, match="there is no folder 'org/tiny' under a model root"):
        resolve(NamedInput.of_preparation(REQUEST.model_copy(update={"model": "org/tiny"})), policy, SilentProgress())
    assert hub.requested == []


def test_a_file_that_was_cut_in_the_cache_is_fetched_again(hub: FakeHub, tmp_path: Path, text_root: Path) -> None:
    hub.repositories["org/tiny"] = {"model.safetensors": WEIGHTS, "config.json": b"{}"}
    policy = SourcePolicy(hub_endpoint=hub.endpoint, text_roots=(text_root,))
    first = resolve(NamedInput.of_preparation(REQUEST), policy, SilentProgress(), workspace=tmp_path / "work")
    (first.folder / "config.json").resolve().write_bytes(b"{")
    resolve(NamedInput.of_preparation(REQUEST), policy, SilentProgress(), workspace=tmp_path / "work")
    assert (first.folder / "config.json").read_bytes() == b"{}"


def test_another_revision_is_not_served_by_the_pin(hub: FakeHub, tmp_path: Path) -> None:
    hub.repositories["org/tiny"] = {"model.safetensors": WEIGHTS}
    pinned_snapshot(HubModel("org/tiny"), policy_of(hub), tmp_path)
    hub.head = "f" * 40
    assert pinned_snapshot(HubModel("org/tiny", "v2"), policy_of(hub), tmp_path).commit == "f" * 40


@pytest.mark.parametrize("content", [b"", b"[]", b'{"model": "org/tiny"}'])
def test_a_pin_that_cannot_be_read_is_replaced(hub: FakeHub, tmp_path: Path, content: bytes) -> None:
    hub.repositories["org/tiny"] = {"model.safetensors": WEIGHTS}
    (tmp_path / "commit.json").write_bytes(content)
    for _ in range(2):
        assert pinned_snapshot(HubModel("org/tiny"), policy_of(hub), tmp_path).commit == COMMIT


def test_an_error_without_a_message_is_named_by_its_type() -> None:
    assert first_line(TimeoutError()) == "TimeoutError"
    assert first_line(TimeoutError("\n too slow\n more")) == "too slow"


def test_an_unknown_model_is_not_found(hub: FakeHub) -> None:
    with pytest.raises(NotFound, match="no model 'org/absent'"):
        find_snapshot(HubModel("org/absent"), policy_of(hub))


def test_a_gated_model_needs_a_token(hub: FakeHub) -> None:
    with pytest.raises(Unauthorized, match="gated"):
        find_snapshot(HubModel("org/gated"), policy_of(hub))


def test_a_pickle_only_repository_is_refused_before_anything_is_fetched(hub: FakeHub) -> None:
    hub.repositories["org/pickle"] = {"pytorch_model.bin": b"!", "config.json": b"{}"}
    with pytest.raises(UnsupportedModel, match=r"only pickled weights \(pytorch_model.bin\)"):
        find_snapshot(HubModel("org/pickle"), policy_of(hub))
    assert hub.requested == []


def test_a_file_shorter_than_the_hub_said_is_no_success(hub: FakeHub) -> None:
    hub.repositories["org/cut"] = {"model.safetensors": b"half"}
    hub.stated_sizes["model.safetensors"] = 8
    snapshot = find_snapshot(HubModel("org/cut"), policy_of(hub))
    with pytest.raises(NetworkError, match="4 bytes"):
        fetch(HubModel("org/cut"), snapshot, policy_of(hub), SilentProgress())


def test_a_hub_that_cannot_be_reached_is_a_network_error(tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match="cannot be fetched"):
        find_snapshot(HubModel("org/tiny"), SourcePolicy(hub_endpoint="http://127.0.0.1:9"))


def test_offline_a_model_that_is_not_cached_is_a_network_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    with pytest.raises(NetworkError, match="cached"):
        find_snapshot(HubModel("org/tiny"), SourcePolicy(is_offline=True))
