"""What the demo says to type next: the shell takes it, and zo-device finds the demo's home, bundle and run."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from device import Device
from tiny_bundle import make_tiny_bundle

from device_client.tuning.run_directory import RunDirectory


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """What the demo leaves, in a folder whose name a shell would take apart."""
    output = tmp_path / "demo output"
    bundle = make_tiny_bundle(output / "device" / "bundles")
    run = RunDirectory(output / "run")
    run.create()
    rendering = {"template": "{text} is {label}", "label_words": [["b", "b"], ["d", "d"]]}
    config = {
        "bundle_digest": bundle.digest,
        "settings": {"steps": 2, "objective": "candidates"},
        "rendering": rendering,
    }
    run.write_json("config.json", config | {"max_tokens": None})
    run.journal.write_bytes(b"")
    run.write_theta("best.safetensors", torch.zeros(14 * 8), 2)
    return output


def test_the_next_commands_run_as_they_are_printed(output: Path) -> None:
    data = output / "it's mine.jsonl"
    data.write_text('{"text": "a", "label": "b"}\n{"text": "c", "label": "d"}\n')
    device = Device(home=output / "device", run=output / "run", question=output / "question.jsonl")
    export, *commands = device.next_commands("tiny:latest", data)
    assert [shlex.split(command)[1] for command in commands] == ["eval", "generate", "runs"]

    for command in commands:
        words = [sys.executable, "-c", "from device_client.cli import main; raise SystemExit(main())"]
        inner = shlex.join([*words, *shlex.split(command)[1:], "--json"])
        done = subprocess.run(["/bin/sh", "-c", f"{export}\n{inner}"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
    assert [run["path"] for run in answer["runs"]] == [str(output / "run")]
