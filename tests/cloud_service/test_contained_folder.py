"""What is read of a foreign folder, and that nothing outside it ever is."""

from __future__ import annotations

import hashlib
import os
import socket
from pathlib import Path

import pytest

from cloud_service.contained_folder import ContainedFolder
from shared.errors import DataError, UnsupportedModel

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with one file, beside a secret."""
    (tmp_path / "signing-key.pem").write_text("the key")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "jobs.sqlite3").write_text("the jobs")
    root = tmp_path / "model"
    root.mkdir()
    (root / "config.json").write_text("{}")
    return root


def read(root: Path, name: str, max_bytes: int = 100) -> bytes:
    return ContainedFolder(root).read(name, max_bytes=max_bytes)


def test_a_regular_file_is_read_by_name_by_path_and_by_digest(root: Path) -> None:
    with ContainedFolder(root).open("config.json") as file:
        assert (file.name, file.size) == ("config.json", 2)
        assert file.path.read_bytes() == b"{}"
        assert file.digest() == "sha256:" + hashlib.sha256(b"{}").hexdigest()
    assert read(root, "config.json") == b"{}"


def test_a_link_that_stays_inside_is_followed(root: Path) -> None:
    (root / "sub").mkdir()
    (root / "sub" / "LICENSE").write_text("MIT")
    (root / "LICENSE").symlink_to("sub/LICENSE")
    (root / "COPYING").symlink_to(root / "LICENSE")
    assert (read(root, "LICENSE"), read(root, "COPYING")) == (b"MIT", b"MIT")


@pytest.mark.attack
@pytest.mark.parametrize(
    "target",
    ["../signing-key.pem", "../secrets/jobs.sqlite3", "/etc/passwd", "/proc/self/environ", "/dev/zero", "/dev/tty"],
)
def test_a_link_out_of_the_folder_is_refused_by_name(root: Path, target: str) -> None:
    (root / "LICENSE").symlink_to(target)
    with pytest.raises(UnsupportedModel, match="LICENSE is a link out of the model folder"):
        read(root, "LICENSE")


@pytest.mark.attack
def test_a_chain_of_links_that_ends_outside_is_refused(root: Path) -> None:
    (root / "one").symlink_to("two")
    (root / "two").symlink_to("three")
    (root / "three").symlink_to("../signing-key.pem")
    with pytest.raises(UnsupportedModel, match="one is a link out of the model folder"):
        read(root, "one")


@pytest.mark.attack
def test_a_folder_that_is_a_link_out_is_neither_read_nor_listed(root: Path) -> None:
    (root / "en").symlink_to("../secrets")
    folder = ContainedFolder(root, error=DataError, what="folder of texts")
    for read_it in (lambda: folder.read("en/jobs.sqlite3", max_bytes=100), lambda: folder.names("en")):
        with pytest.raises(DataError, match="is a link out of the folder of texts"):
            read_it()


@pytest.mark.attack
def test_a_folder_that_became_a_link_after_its_path_was_resolved_is_refused(root: Path, tmp_path: Path) -> None:
    folder = ContainedFolder(root)
    root.rename(tmp_path / "moved")
    root.symlink_to("secrets")
    with pytest.raises(UnsupportedModel, match="link out of the model folder"):
        folder.read("jobs.sqlite3", max_bytes=100)


@pytest.mark.attack
def test_what_was_opened_is_what_is_read_although_the_name_now_leads_elsewhere(root: Path) -> None:
    with ContainedFolder(root).open("config.json") as file:
        (root / "config.json").unlink()
        (root / "config.json").symlink_to("../signing-key.pem")
        with file.stream() as stream:
            assert stream.read() == b"{}"


@pytest.mark.attack
def test_a_pipe_a_socket_and_a_folder_are_refused_at_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(root / "pipe")
    (root / "folder").mkdir()
    monkeypatch.chdir(root)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        for name, kind in {"pipe": "a named pipe", "folder": "a folder", "socket": "a socket"}.items():
            with pytest.raises(UnsupportedModel, match=f"{name} is {kind}"):
                read(root, name)


@pytest.mark.attack
def test_a_device_inside_the_folder_is_refused(root: Path) -> None:
    try:
        os.mknod(root / "README.md", 0o600 | 0o020000, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("only root may make a device")
    with pytest.raises(UnsupportedModel, match=r"README\.md is a device"):
        read(root, "README.md")


def test_a_file_that_is_too_long_is_not_opened(root: Path) -> None:
    (root / "README.md").write_bytes(b"x" * 101)
    with pytest.raises(UnsupportedModel, match=r"README\.md: 101 bytes\nNeeded: at most 100 bytes"):
        read(root, "README.md")


@pytest.mark.parametrize("name", ["absent", "absent/file", "a\0b", "\ud800", "x" * 300, "config.json/x"])
def test_a_name_that_is_nothing_is_refused(root: Path, name: str) -> None:
    with pytest.raises(UnsupportedModel):
        read(root, name)


@pytest.mark.parametrize("target", ["loop", "absent"])
def test_a_link_that_leads_nowhere_is_refused(root: Path, target: str) -> None:
    (root / "loop").symlink_to(target)
    with pytest.raises(UnsupportedModel, match=r"loop is a link to what is not there|is a loop of links"):
        read(root, "loop")


def test_a_list_names_everything_but_folders(root: Path) -> None:
    (root / "LICENSES").mkdir()
    (root / "LICENSE").symlink_to("../signing-key.pem")
    os.mkfifo(root / "README.md")
    assert ContainedFolder(root).names() == ["LICENSE", "README.md", "config.json"]


def test_a_snapshot_of_the_hubs_cache_links_to_its_blobs(tmp_path: Path) -> None:
    snapshot = cached_snapshot(tmp_path / "models--org--tiny")
    assert read(snapshot, "config.json") == b"{}"


@pytest.mark.attack
def test_a_snapshot_of_the_hubs_cache_links_to_nothing_else(tmp_path: Path) -> None:
    cached_snapshot(tmp_path / "models--org--private")
    snapshot = cached_snapshot(tmp_path / "models--org--tiny")
    (snapshot / "LICENSE").symlink_to("../../../models--org--private/blobs/1")
    with pytest.raises(UnsupportedModel, match="LICENSE is a link out of the model folder"):
        read(snapshot, "LICENSE")


@pytest.mark.attack
def test_a_folder_that_only_looks_like_a_snapshot_is_bounded_by_itself(tmp_path: Path) -> None:
    snapshot = cached_snapshot(tmp_path / "team--tiny")
    with pytest.raises(UnsupportedModel, match=r"config\.json is a link out of the model folder"):
        read(snapshot, "config.json")


def cached_snapshot(repository: Path) -> Path:
    """Write a repository as the hub's cache has it, and return its snapshot."""
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "blobs" / "1").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/1")
    return snapshot
