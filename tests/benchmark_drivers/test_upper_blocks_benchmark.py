"""The benchmark of steps over upper blocks, run with a tiny bundle."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import upper_blocks
from tiny_bundle import TinyBundle


def test_steps_are_measured_beside_two_bare_forwards_and_recorded(
    tiny_bundle: TinyBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bundles").symlink_to(tiny_bundle.layout.root)
    words = ["--bundle", "tiny:latest", "--home", str(tmp_path), "--results", str(tmp_path), "--rounds", "2"]
    monkeypatch.setattr(
        sys, "argv", ["upper_blocks.py", *words, "--rows", "3", "--columns", "8", "--backend", "reference"]
    )

    upper_blocks.main()

    found = json.loads((tmp_path / "upper_blocks.json").read_text())
    assert found["blocks"] == "upper:1 of 2"
    assert found["kept_states_bytes"] == found["planned_kept_states_bytes"] == 4 * 3 * 8 * 32 * 4  # four batches
    assert found["timings"]["zo_upper"]["rounds"] == 2
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary.keys() == {"tune.seconds_per_step.zo", "tune.seconds_per_step.zo_upper"}
    assert all(0 < each["value"] < 100 for each in summary.values())
