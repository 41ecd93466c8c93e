"""Which proxy a request goes through, by the environment's variables."""

from __future__ import annotations

import pytest

from device_client.download.proxies import Proxy, ProxySettings, parse_proxy
from shared.errors import NetworkError

URL = "https://models.example.org:8443/v2/"


def chosen(url: str = URL, **environment: str) -> str | None:
    proxy = ProxySettings.from_environment(environment).proxy_for(url)
    return str(proxy) if proxy else None


def test_without_a_variable_there_is_no_proxy() -> None:
    assert chosen() is None
    assert chosen(HTTPS_PROXY="") is None
    assert chosen(HTTP_PROXY="http://proxy:1") is None


@pytest.mark.parametrize(
    ("environment", "shown"),
    [
        ({"HTTPS_PROXY": "http://proxy:3128"}, "the proxy http://proxy:3128 (HTTPS_PROXY)"),
        (
            {"https_proxy": "http://proxy:3128", "HTTPS_PROXY": "http://x:1"},
            "the proxy http://proxy:3128 (https_proxy)",
        ),
        ({"ALL_PROXY": "proxy:3128"}, "the proxy http://proxy:3128 (ALL_PROXY)"),
        ({"ALL_PROXY": "http://x:1", "HTTPS_PROXY": "http://proxy"}, "the proxy http://proxy:80 (HTTPS_PROXY)"),
        ({"ALL_PROXY": "socks5://[::1]"}, "the proxy socks5://[::1]:1080 (ALL_PROXY)"),
        ({"ALL_PROXY": "socks5h://user:secret@proxy:9"}, "the proxy socks5h://proxy:9 (ALL_PROXY)"),
    ],
)
def test_the_scheme_decides_and_the_lower_case_name_counts(environment: dict[str, str], shown: str) -> None:
    assert chosen(**environment) == shown


def test_an_empty_lower_case_variable_switches_the_other_off() -> None:
    assert chosen(https_proxy="", HTTPS_PROXY="http://proxy:1") is None


@pytest.mark.parametrize(
    ("entry", "host", "is_excepted"),
    [
        ("*", "models.example.org", True),
        ("models.example.org", "models.example.org", True),
        ("example.org", "models.example.org", True),
        (".example.org", "models.example.org", True),
        ("*.example.org", "models.example.org", True),
        ("Example.ORG", "models.example.org", True),
        ("a.test, example.org", "models.example.org", True),
        ("ample.org", "models.example.org", False),
        ("models", "models.example.org", False),
        ("org.", "models.example.org", False),
        ("models.example.org:8443", "models.example.org", True),
        ("models.example.org:443", "models.example.org", False),
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("10.1.2.3", "10.1.2.3", True),
        ("::1", "[::1]", True),
        ("[::1]", "[::1]", True),
        ("fd00::/8", "[fd12::1]", True),
        ("localhost", "127.0.0.1", False),
        (",,", "models.example.org", False),
    ],
)
def test_no_proxy_excepts_hosts_and_what_is_below_them(entry: str, host: str, *, is_excepted: bool) -> None:
    found = chosen(f"https://{host}:8443/", HTTPS_PROXY="http://proxy:1", NO_PROXY=entry)
    assert (found is None) is is_excepted


def test_user_and_password_are_decoded_and_never_shown() -> None:
    proxy = parse_proxy("HTTPS_PROXY", "http://us%40er:s%3Acret@proxy:3128")
    assert proxy == Proxy("HTTPS_PROXY", "http", "proxy", 3128, "us@er", "s:cret")
    assert "cret" not in f"{proxy} {proxy!r}"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("https://user:secret@proxy:3128", "itself spoken to by TLS"),
        ("socks4://user:secret@proxy", "of the kind 'socks4'"),
        ("http://user:secret@", "names no host"),
        ("http://user:secret@proxy:port", "is not an address of a proxy"),
        ("http://[user:secret", "is not an address of a proxy"),
    ],
)
def test_an_unusable_proxy_is_named_by_its_variable_without_its_password(value: str, words: str) -> None:
    with pytest.raises(NetworkError, match=words) as caught:
        chosen(HTTPS_PROXY=value)
    assert "HTTPS_PROXY" in caught.value.next_step
    assert "secret" not in str(caught.value)
