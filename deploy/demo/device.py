"""The device half of the demo: pull, ask, tune and ask again, each a ``zo-device`` process of its own."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from setups import Personal

from shared.errors import ZoError

PROGRAM = Path(sys.executable).parent / "zo-device"
ANSWER_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Device:
    """One person's machine: where it keeps bundles and runs.

    Attributes:
        home: Its ``ZO_DEVICE_HOME``.
        run: The folder of the one tuning run.
    """

    home: Path
    run: Path

    def pull(self, client: httpx.Client, bundle: str) -> dict[str, Any]:
        """Fetch ``name:tag`` from the service with the client's key, verified."""
        url = str(client.base_url).rstrip("/")
        key = client.headers["Authorization"].removeprefix("Bearer ")
        return self._zo_device(["pull", f"{url}/{bundle}"], {"ZO_DEVICE_SERVER": url, "ZO_DEVICE_API_KEY": key})

    def tune(self, bundle: str, personal: Personal, seed: int) -> dict[str, Any]:
        """Personalise the bundle with forward passes only; no socket is opened."""
        files = [word for split, option in _SPLIT_OPTIONS for word in (option, str(personal.files[split]))]
        run = ["--seed", str(seed), "--output", str(self.run), "--offline"]
        return self._zo_device(["tune", bundle, *files, *personal.wording, *personal.schedule, *run])

    def ask(self, bundle: str, question: str, *, is_tuned: bool) -> str:
        """Return the first words of the answer, of the bundle as published or as tuned."""
        tuned = ["--run", str(self.run)] if is_tuned else []
        options = ["--max-new-tokens", str(ANSWER_TOKENS), "--offline", "--quiet"]
        return str(self._zo_device(["generate", bundle, question, *options, *tuned])["text"])

    def next_commands(self, bundle: str, question: str) -> list[str]:
        """Return what to type in a shell to ask the tuned model, and to see the run."""
        tuned = ["--run", str(self.run)]
        return [
            f"export ZO_DEVICE_HOME={shlex.quote(str(self.home))}",
            shlex.join([str(PROGRAM), "generate", bundle, question, "--max-new-tokens", str(ANSWER_TOKENS), *tuned]),
            shlex.join([str(PROGRAM), "runs", str(self.run)]),
        ]

    def _zo_device(self, command: Sequence[str], environment: dict[str, str] | None = None) -> dict[str, Any]:
        """Run ``zo-device … --json`` with its progress shown, and return its JSON object."""
        surroundings = {**os.environ, "ZO_DEVICE_HOME": str(self.home), **(environment or {})}
        result = subprocess.run(
            [str(PROGRAM), *command, "--json"], stdout=subprocess.PIPE, env=surroundings, check=False
        )
        if result.returncode:
            raise ZoError(f"zo-device {command[0]} ended with exit code {result.returncode}; it says why above")
        answer: dict[str, Any] = json.loads(result.stdout)
        return answer


_SPLIT_OPTIONS = (("train", "--data"), ("validation", "--validation"), ("test", "--test"))
