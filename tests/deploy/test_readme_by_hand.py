"""The commands of the README's "By hand", typed as they stand there: only the model, its length and the port differ.

A tiny random model lies where the demo keeps SmolLM2, and tuning takes 2 steps instead of 200.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from service import wait_for
from smollm2 import SMOLLM2
from tiny_checkpoint import build_checkpoint

CHECKOUT = Path(__file__).resolve().parents[2]
JOB_TIMEOUT_SECONDS = 120


class Typed(NamedTuple):
    """Blocks of commands as the README has them."""

    operator: str
    device: str


@pytest.fixture(scope="module")
def typed() -> Typed:
    """The two blocks of the section, the operator's and the device's."""
    section = (CHECKOUT / "README.md").read_text().partition("## By hand\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"(?:^    .*\n)+", section, flags=re.MULTILINE)
    operator, device = (re.sub(r"^    ", "", block, flags=re.MULTILINE) for block in (blocks[0], blocks[-1]))
    return Typed(operator, device)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder whose cache holds a tiny model in SmolLM2's place, and a folder to type in."""
    home = tmp_path_factory.mktemp("home")
    build_checkpoint(home / ".cache" / "zo-device" / "models" / SMOLLM2.path, max_position_embeddings=128)
    for folder in ("deploy/demo/texts", "deploy/demo/household"):
        shutil.copytree(CHECKOUT / folder, home / "checkout" / folder)
    return home


def shell_environment(home: Path) -> dict[str, str]:
    """What a person's shell knows after the virtual environment was activated."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ZO_", "XDG_"))}
    return kept | {"HOME": str(home), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


@pytest.fixture(scope="module")
def key_and_url(typed: Typed, home: Path) -> Iterator[tuple[str, str]]:
    """The service, started by the README's first command at a free port: its admin key and address."""
    serve = next(line for line in typed.operator.splitlines() if line.startswith("zo-cloud serve"))
    log, errors = home / "log", home / "errors"
    with log.open("wb") as log_file, errors.open("wb") as error_file:
        process = subprocess.Popen(
            ["/bin/bash", "-c", f"exec {serve.partition('#')[0]} --port 0"],
            cwd=home / "checkout", env=shell_environment(home), stdout=log_file, stderr=error_file,
        )  # fmt: skip
    try:
        url = wait_for(process, log, r'"url": ?"(http[^"]+)"', errors)
        yield wait_for(process, errors, r"(zo_\S+)", errors), url
    finally:
        process.terminate()
        process.wait(timeout=60)


def run_typed(commands: str, home: Path, key_and_url: tuple[str, str]) -> subprocess.CompletedProcess[str]:
    """Type commands into a shell that stops at the first that fails."""
    key, url = key_and_url
    commands = commands.replace("http://127.0.0.1:8080", url).replace("zo_…", key).replace("--steps 200", "--steps 2")
    return subprocess.run(
        ["/bin/bash", "-euc", commands],
        cwd=home / "checkout", env=shell_environment(home) | {"KEY": key}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_every_command_of_by_hand_runs_as_written(typed: Typed, home: Path, key_and_url: tuple[str, str]) -> None:
    post = typed.operator[typed.operator.index("export KEY") :]
    posted = run_typed(post, home, key_and_url)
    assert posted.returncode == 0, posted.stderr
    assert '"status":"queued"' in posted.stdout.replace(" ", ""), posted.stdout

    client = httpx.Client(base_url=key_and_url[1], headers={"Authorization": f"Bearer {key_and_url[0]}"})
    deadline = time.monotonic() + JOB_TIMEOUT_SECONDS
    while (job := client.get("/v1/jobs").json()["jobs"][0])["status"] in ("queued", "running"):
        assert time.monotonic() < deadline, job
        time.sleep(0.1)
    client.close()
    assert job["status"] == "succeeded", job["error"]

    used = run_typed(typed.device, home, key_and_url)
    assert used.returncode == 0, used.stdout + used.stderr
    assert (home / "checkout" / "run" / "best.safetensors").is_file()


def test_by_hand_names_the_model_and_the_rows_of_the_demo(typed: Typed) -> None:
    assert f'"model": "{SMOLLM2.path}"' in typed.operator
    assert "deploy/demo/household/train.jsonl" in typed.device
