"""What a reference names."""

from __future__ import annotations

import pytest

from device_client.download.reference import normalized_server, parse_reference
from shared.errors import InvalidDigest, InvalidRequest

DIGEST = "sha256:" + "0a" * 32


@pytest.mark.parametrize(
    ("text", "source", "remote", "local"),
    [
        ("tiny", "http://set.test/tiny", "latest", "tiny:latest"),
        ("tiny:v1", "http://set.test/tiny", "v1", "tiny:v1"),
        ("people/tiny:v1", "http://set.test/people/tiny", "v1", "people/tiny:v1"),
        (f"tiny@{DIGEST}", "http://set.test/tiny", DIGEST, "tiny:sha256-0a0a0a0a0a0a"),
        (f"tiny:v1@{DIGEST}", "http://set.test/tiny", DIGEST, "tiny:v1"),
        ("https://host.test/tiny", "https://host.test/tiny", "latest", "tiny:latest"),
        ("HTTP://Host.test:80/tiny:v1", "http://host.test/tiny", "v1", "tiny:v1"),
        ("http://127.0.0.1:8080/a/b:c", "http://127.0.0.1:8080/a/b", "c", "a/b:c"),
        ("http://[::1]:8080/tiny", "http://[::1]:8080/tiny", "latest", "tiny:latest"),
        (f"https://host.test/tiny@{DIGEST}", "https://host.test/tiny", DIGEST, "tiny:sha256-0a0a0a0a0a0a"),
    ],
)
def test_a_reference_names_a_source_a_remote_and_a_local_name(text: str, source: str, remote: str, local: str) -> None:
    reference = parse_reference(text, "http://set.test/")
    assert (reference.source, reference.remote, reference.local) == (source, remote, local)


@pytest.mark.parametrize(
    "text",
    [
        "", ":", "tiny:", "Tiny", "../tiny", "a/../b", "tiny:v 1", "/tiny", "tiny/", "tiny:a:b", "ti\nny", "a" * 201,
        "http://host.test", "http://host.test/", "http://host.test/tiny?x=1", "http://host.test/tiny#x", "file:///tiny",
        "http://user:secret@host.test/tiny", "http://host.test:99999/tiny", "http:///tiny",
    ],
)  # fmt: skip
def test_other_forms_are_wrong_calls(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_reference(text, "http://set.test")


@pytest.mark.parametrize("digest", ["", "sha256:0", "sha512:" + "0a" * 32, "sha256:" + "0A" * 32])
def test_a_malformed_digest_is_refused(digest: str) -> None:
    with pytest.raises(InvalidDigest):
        parse_reference(f"tiny@{digest}", "http://set.test")


def test_a_password_in_a_url_is_not_repeated() -> None:
    with pytest.raises(InvalidRequest) as caught:
        normalized_server("http://user:secret@host.test")
    assert "secret" not in str(caught.value)


def test_without_a_server_the_reference_has_none() -> None:
    assert parse_reference("tiny", None).server == ""
