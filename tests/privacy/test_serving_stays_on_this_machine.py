"""``serve`` accepts on a loopback address and connects to nothing; what was asked and answered is in no log or file."""

from __future__ import annotations

import json
import re
import signal
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from serving_device import serving
from tiny_bundle import TinyBundle
from traced_commands import CANARY, files_with


def post(url: str, body: bytes) -> int:
    request = urllib.request.Request(url, body, {"content-type": "application/json"})  # noqa: S310 - http
    try:
        with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310 - http, to this machine
            response.read()
            return int(response.status)
    except urllib.error.HTTPError as error:
        error.read()
        error.close()
        return error.code


def test_a_server_listens_on_loopback_alone_and_keeps_no_word(tmp_path: Path, tiny_bundle: TinyBundle) -> None:
    home, log = tmp_path / "home", tmp_path / "trace"
    home.mkdir()
    (home / "bundles").symlink_to(tiny_bundle.layout.root)
    calls = "trace=connect,bind,listen,sendto,sendmsg"
    strace = ["strace", "-D", "-f", "--seccomp-bpf", "-e", calls, "-o", str(log)]  # -D: the server is our own child
    asked = {"model": "tiny", "messages": [{"role": "user", "content": CANARY}], "max_tokens": 3}

    with serving(home, under=strace) as server:
        chat = f"{server.url}/v1/chat/completions"
        answered = [post(chat, json.dumps(asked | change).encode()) for change in ({}, {"n": 2}, {"stream": True})]
        wrong = (
            b"{" + CANARY.encode(),
            json.dumps(asked | {"seed": CANARY}).encode(),
            json.dumps(asked | {CANARY: 1}).encode(),
        )
        refused = [post(chat, body) for body in wrong]
        server.process.send_signal(signal.SIGTERM)
        said = "".join(map(str, server.process.communicate(timeout=30)))

    assert (answered, refused) == ([200] * 3, [400] * 3)
    assert CANARY not in said
    assert files_with(CANARY, tmp_path) == []
    traced = log.read_text()
    assert re.findall(r"connect\(.*", traced) == []
    assert set(re.findall(r'bind\(.*inet_addr\("([^"]+)"\)', traced)) == {"127.0.0.1"}
    assert "AF_INET6" not in traced


@pytest.mark.attack
def test_the_trace_of_a_server_would_show_a_connection(tmp_path: Path) -> None:
    """The same trace of a program that does connect holds its call: the test above can fail."""
    import subprocess
    import sys

    log = tmp_path / "trace"
    program = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('127.0.0.1', 9))"
    subprocess.run(["strace", "-f", "-e", "trace=connect", "-o", str(log), sys.executable, "-c", program], check=True)

    assert 'inet_addr("127.0.0.1")' in log.read_text()
