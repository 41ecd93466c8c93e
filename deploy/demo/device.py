"""The device half of the demo: pull, ask, tune and ask again, each a ``zo-device`` process of its own."""

from __future__ import annotations

import json
import math
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


@dataclass(frozen=True, slots=True)
class Device:
    """One person's machine: where it keeps bundles and runs.

    Attributes:
        home: Its ``ZO_DEVICE_HOME``.
        run: The folder of the one tuning run.
        question: The file that the question is written to.
    """

    home: Path
    run: Path
    question: Path

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

    def probability(self, bundle: str, personal: Personal, *, is_tuned: bool) -> float:
        """Return how likely the right label of the question is among all labels, before or after tuning.

        The model continues the prompt with one of the label words: e to the minus its loss on this one row.
        """
        self.question.write_text(json.dumps(personal.question) + "\n", encoding="utf-8")
        prompts = ["--run", str(self.run)] if is_tuned else list(personal.wording)
        answer = self._zo_device(["eval", bundle, "--data", str(self.question), *prompts, "--offline", "--quiet"])
        return math.exp(-answer["loss"])

    def next_commands(self, bundle: str, data: Path) -> list[str]:
        """Return what to type in a shell to measure the tuned model, to let it write, and to see the run."""
        tuned = ["--run", str(self.run)]
        return [
            f"export ZO_DEVICE_HOME={shlex.quote(str(self.home))}",
            shlex.join([str(PROGRAM), "eval", bundle, "--data", str(data), *tuned]),
            shlex.join([str(PROGRAM), "generate", bundle, "Once upon a time", *tuned]),
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
