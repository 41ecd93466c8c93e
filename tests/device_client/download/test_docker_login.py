"""The file in which docker, podman, skopeo and oras keep logins."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from device_client.download.docker_login import read_docker_login
from device_client.settings import Settings
from shared.errors import InvalidRequest

KEPT = base64.b64encode(b"user:pass:word").decode()


def write(folder: Path, content: Any) -> Path:
    file = folder / "config.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


@pytest.mark.parametrize(
    ("name", "server"),
    [
        ("models.test", "https://models.test"),
        ("models.test:5000", "http://models.test:5000"),
        ("https://models.test/v1/", "https://models.test"),
        ("https://models.test", "https://models.test/prefix"),
    ],
)
def test_the_login_of_the_host_is_found(tmp_path: Path, name: str, server: str) -> None:
    login = read_docker_login(write(tmp_path, {"auths": {name: {"auth": KEPT}}}), server)
    assert login is not None
    assert (login.user, login.password) == ("user", "pass:word")
    assert "pass:word" not in repr(login)


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"auths": {}},
        {"auths": {"other.test": {"auth": KEPT}}},
        {"auths": {"models.test:5000": {"auth": KEPT}}},
        {"auths": {"models.test": {}}},
        {"auths": {"models.test": {}}, "credsStore": "desktop"},
        {"auths": {"models.test": {"auth": base64.b64encode(b"no colon").decode()}}},
    ],
)
def test_another_host_or_a_helper_gives_no_login(tmp_path: Path, content: Any) -> None:
    assert read_docker_login(write(tmp_path, content), "https://models.test") is None


def test_a_file_that_does_not_exist_has_no_login(tmp_path: Path) -> None:
    assert read_docker_login(tmp_path / "none.json", "https://models.test") is None


@pytest.mark.parametrize(
    "content",
    [
        "",
        "not JSON",
        "[]",
        {"auths": []},
        {"auths": {"models.test": {"auth": "no base64!"}}},
        '{"auths": ' + "[" * 50_000,
    ],
    ids=["empty", "text", "list", "no names", "no base64", "deep"],
)
def test_a_file_of_another_form_is_named(tmp_path: Path, content: Any) -> None:
    with pytest.raises(InvalidRequest, match="not a file of registry logins"):
        read_docker_login(write(tmp_path, content), "https://models.test")


def test_the_environment_says_where_the_file_is() -> None:
    def file(**environment: str) -> Path | None:
        return Settings.from_environment(environment).login_file

    assert file() == Path("~/.docker/config.json").expanduser()
    assert file(DOCKER_CONFIG="/somewhere") == Path("/somewhere/config.json")
    assert file(DOCKER_CONFIG="/somewhere", REGISTRY_AUTH_FILE="/else/auth.json") == Path("/else/auth.json")
