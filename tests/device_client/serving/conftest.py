"""A home with the tiny bundle and two runs of it, and a server of all three."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving_device import Server, serving
from tiny_bundle import TinyBundle

from device_client.cli import main

QUICK = ("--device", "cpu", "--backend", "reference", "--quiet")
ROWS = {
    "talker": [
        {"messages": [{"role": "user", "content": f"Hi {i}"}, {"role": "assistant", "content": "Lily"}]}
        for i in range(8)
    ],
    "labeller": [{"text": f"{word} {i}", "label": word} for i in range(4) for word in ("good", "bad")],
}


@pytest.fixture(scope="session")
def served_home(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: TinyBundle) -> Path:
    """A home with the tiny bundle, a run of conversations and a run of labelled rows."""
    home = tmp_path_factory.mktemp("served")
    (home / "bundles").symlink_to(tiny_bundle.layout.root)
    before = os.environ.get("ZO_DEVICE_HOME")
    os.environ["ZO_DEVICE_HOME"] = str(home)
    try:
        for name, rows in ROWS.items():
            path = home / f"{name}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            output = home / "runs" / name
            steps = ("--steps", "4", "--batch", "2", "--lr", "1", "--output", str(output))
            assert main(["tune", "tiny", "--data", str(path), *steps, *QUICK]) == 0
    finally:
        os.environ.pop("ZO_DEVICE_HOME") if before is None else os.environ.update(ZO_DEVICE_HOME=before)
    return home


@pytest.fixture(scope="module")
def server(served_home: Path) -> Iterator[Server]:
    with serving(served_home) as server:
        yield server
