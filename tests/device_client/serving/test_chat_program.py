"""An ordinary chat program, told where the server is by its own settings, works unchanged: Simon Willison's ``llm``."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from serving_device import Server

RunProgram = Callable[..., str]


@pytest.fixture
def llm(server: Server, tmp_path: Path) -> RunProgram:
    """Run the program with the server's models in its settings, and return what it prints."""
    models = "".join(
        f"- model_id: here-{name}\n  model_name: {name}\n  api_base: {server.url}/v1\n" for name in ("tiny", "talker")
    )
    (tmp_path / "extra-openai-models.yaml").write_text(models)

    def run(*words: str, typed: str = "") -> str:
        done = subprocess.run(
            [sys.executable, "-m", "llm", *words],
            env={**os.environ, "LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"},
            input=typed, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_it_streams_an_answer_and_repeats_it_without_streaming(llm: RunProgram) -> None:
    words = ("-m", "here-talker", "Hi 1", "-o", "temperature", "0", "-o", "max_tokens", "6", "-o", "seed", "1")

    streamed, whole = llm(*words), llm(*words, "--no-stream")

    assert streamed.strip() == whole.strip() != ""


def test_it_talks_turn_by_turn(llm: RunProgram) -> None:
    words = ("chat", "-m", "here-tiny", "--system", "S", "-o", "max_tokens", "3")

    said = llm(*words, typed="Hi\nAnd?\nexit\n")

    assert said.count("\n> ") == 3  # a prompt for each turn, and one before "exit"
