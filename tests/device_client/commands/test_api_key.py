"""Which server gets to see the key, and what a key must look like."""

from __future__ import annotations

from pathlib import Path

import pytest

from device_client.commands.server_options import read_api_key
from device_client.settings import Settings
from shared.errors import InvalidRequest

HERS = "https://models.test"


def settings(server: str | None) -> Settings:
    return Settings(home=Path("/nowhere"), server=server, api_key="zo_secret")


@pytest.mark.parametrize(
    ("configured", "asked"),
    [
        (HERS, HERS),
        ("https://Models.test:443/", HERS),
        (f"{HERS}/mirror", HERS),
        ("http://models.test:8080", "http://models.test:8080"),
        (None, "http://127.0.0.1:8080"),
        (None, "http://127.8.9.10"),
        (None, "http://localhost:1"),
        (None, "http://[::1]:8080"),
    ],
)
def test_the_environments_key_goes_to_the_environments_server(configured: str | None, asked: str) -> None:
    assert read_api_key(None, asked, settings(configured)) == "zo_secret"


@pytest.mark.parametrize(
    ("configured", "asked"),
    [
        (HERS, "https://evil.test"),
        (HERS, "http://models.test"),
        (HERS, "https://models.test:8443"),
        (HERS, "https://models.test.evil.test"),
        (HERS, "http://127.0.0.1:8080"),
        (None, HERS),
        (None, "http://127.evil.test"),
        (None, "http://192.168.0.7"),
    ],
)
def test_the_environments_key_goes_to_no_other_server(configured: str | None, asked: str) -> None:
    with pytest.raises(InvalidRequest, match="--api-key-file") as caught:
        read_api_key(None, asked, settings(configured))
    assert "zo_secret" not in str(caught.value)


def test_a_key_file_is_for_the_server_of_its_command(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("zo_other\n")
    assert read_api_key(tmp_path / "key", "https://evil.test", settings(HERS)) == "zo_other"


def test_without_a_key_every_server_may_be_asked() -> None:
    assert read_api_key(None, "https://evil.test", Settings(home=Path("/nowhere"), server=HERS)) is None


@pytest.mark.parametrize(
    "words", [("pull", "http://models.invalid/tiny"), ("list", "--remote", "--server", "http://x.invalid")]
)
def test_a_reference_to_another_host_is_refused_before_anything_is_sent(
    command, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZO_DEVICE_API_KEY", "zo_secret")
    monkeypatch.setenv("ZO_DEVICE_SERVER", HERS)
    outcome = command(*words)
    assert (outcome.code, outcome.result["error"]["type"]) == (2, "invalid-request")
    assert "zo_secret" not in outcome.told
