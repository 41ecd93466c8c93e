"""``zo-device chat`` on a terminal and from a pipe."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_bundle import TinyBundle

from device_client.cli import main

QUICK = ("--device", "cpu", "--backend", "reference")


@pytest.fixture
def tiny_home(tmp_path: Path, tiny_bundle: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZO_DEVICE_HOME", str(tmp_path))
    (tmp_path / "bundles").symlink_to(tiny_bundle.layout.root)
    return tmp_path


def chat_json(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, typed: str, *words: str
) -> tuple[int, dict[str, object], str]:
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    code = main(["chat", *QUICK, "--max-new-tokens", "4", "--json", *words])
    streams = capsys.readouterr()
    return code, json.loads(streams.out), streams.err


def roles(result: dict[str, object]) -> list[str]:
    messages = result["messages"]
    assert isinstance(messages, list)
    return [message["role"] for message in messages]


@pytest.mark.usefixtures("tiny_home")
def test_each_line_of_a_pipe_is_a_turn(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, result, _ = chat_json(capsys, monkeypatch, "Hi\n\nAnd?\n", "tiny", "--system", "S")

    assert (code, result["answers"]) == (0, 2)
    assert roles(result) == ["system", "user", "assistant", "user", "assistant"]


@pytest.mark.usefixtures("tiny_home")
def test_commands_begin_anew_and_change_the_system(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = "Hi\n/new\nHi\n/system Be kind.\nHi\n/help\n/wrong\n/exit\nnever read\n"
    code, result, said = chat_json(capsys, monkeypatch, typed, "tiny")

    assert (code, result["answers"]) == (0, 3)
    assert roles(result) == ["system", "user", "assistant"]
    assert "/wrong is not a command" in said


@pytest.mark.usefixtures("tiny_home")
@pytest.mark.parametrize(
    "words", [("--temperature", "-1"), ("--top-p", "0"), ("--max-new-tokens", "0"), ("--seed", "-1"), ("--system", " ")]
)
def test_options_out_of_range_are_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    assert chat_json(capsys, monkeypatch, "", "tiny", *words)[0] == 2


@pytest.fixture
def terminal(tiny_home: Path) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """A chat on a terminal of its own: what a person types and sees goes through the first number."""
    person, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; from device_client.cli import main; sys.exit(main(sys.argv[1:]))",
         "chat", "tiny", *QUICK, "--max-new-tokens", "100"],
        stdin=theirs, stdout=theirs, stderr=theirs, close_fds=True, start_new_session=True,
        env={**os.environ, "ZO_DEVICE_HOME": str(tiny_home), "TERM": "dumb"},
        preexec_fn=_own_terminal,
    )  # fmt: skip
    os.close(theirs)
    yield person, process
    process.kill()
    process.wait()
    os.close(person)


def _own_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # Ctrl-C typed there becomes a signal to the chat


def seen_until(person: int, text: bytes) -> bytes:
    seen = b""
    while text not in seen:
        seen += os.read(person, 4096)
    return seen


def test_control_c_stops_an_answer_and_control_d_leaves(terminal: tuple[int, subprocess.Popen[bytes]]) -> None:
    person, process = terminal
    seen_until(person, b"> ")
    os.write(person, b"Hi\n")
    seen_until(person, b"Hi\r\n")
    os.read(person, 64)  # the answer has begun
    os.write(person, b"\x03")
    assert b" a second" in seen_until(person, b"> ")

    os.write(person, b"\x04")

    assert process.wait(20) == 0


def test_control_c_leaves_where_nothing_is_being_answered(terminal: tuple[int, subprocess.Popen[bytes]]) -> None:
    person, process = terminal
    seen_until(person, b"> ")

    os.write(person, b"\x03")

    assert process.wait(20) == 0
