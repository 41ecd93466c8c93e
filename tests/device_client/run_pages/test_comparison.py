"""Runs side by side: what differs, what they came to, and what keeps figures from being compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from browser import look_at
from written_run import write_run

from device_client.cli import main
from device_client.run_pages.comparison import compare_runs, comparison_page, shown_lines
from device_client.run_pages.run_view import read_run


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZO_DEVICE_HOME", str(tmp_path))
    write_run(tmp_path / "runs" / "slow", settings={"seed": 1, "lr": 1e-6})
    write_run(tmp_path / "runs" / "quick", settings={"seed": 1, "blocks": "upper:2"}, losses=(0.9, 0.8, 0.5))
    return tmp_path


def test_only_settings_that_differ_are_shown(home: Path) -> None:
    found = compare_runs([read_run(home / "runs" / name) for name in ("slow", "quick")])
    assert found.settings == {"blocks": [None, "upper:2"], "lr": [1e-6, None]}
    assert shown_lines(found)[0] == [("blocks", ["default", "upper:2"]), ("lr", ["1e-06", "default"])]
    assert found.warnings == []


def test_results_and_courses_stand_side_by_side(home: Path) -> None:
    found = compare_runs([read_run(home / "runs" / name) for name in ("slow", "quick")]).as_json()
    assert found["results"]["validation loss, best"] == [0.6, 0.5]
    assert found["results"]["forward passes"] == [9, 9]
    assert found["results"]["seconds worked"] == [20, 20]
    assert found["validation_by_passes"] == [[(0, 0.9), (5, 0.7), (9, 0.6)], [(0, 0.9), (5, 0.8), (9, 0.5)]]


def test_runs_on_other_rows_are_compared_with_a_warning(home: Path) -> None:
    other = write_run(home / "runs" / "other", config={"rows": {"validation": "sha256:else"}, "bundle_digest": "b"})
    found = compare_runs([read_run(home / "runs" / "slow"), read_run(other)])
    assert found.warnings == ["Not the same bundle, validation rows: compare results with care."]


def test_runs_of_one_name_are_told_apart_by_their_folders(home: Path) -> None:
    twin = write_run(home / "else" / "slow")
    found = compare_runs([read_run(home / "runs" / "slow"), read_run(twin)])
    assert found.names == [str(home / "runs" / "slow"), str(twin)]


def test_the_page_fits_a_phone_and_loads_nothing(home: Path, tmp_path: Path) -> None:
    page = comparison_page(compare_runs([read_run(home / "runs" / name) for name in ("slow", "quick", "slow")]))
    seen = look_at(page, tmp_path, width=375)
    assert (seen.too_wide, seen.loads, seen.console) == ([], [], [])
    assert seen.scroll_width <= 375


def test_compare_by_command_as_table_page_and_json(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = home / "compare.html"
    code, found, spoken = call(capsys, "runs", "compare", "slow", "quick", "--page", str(page))
    assert code == 0
    assert [run["name"] for run in found["runs"]] == ["slow", "quick"]
    assert "upper:2" in spoken
    assert "█" in spoken  # the curves
    assert page.read_text().startswith("<!doctype html>")
    assert page.stat().st_mode & 0o777 == 0o600


def test_one_run_or_an_unknown_one_is_refused(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "runs", "compare", "slow")[0] == 2
    assert call(capsys, "runs", "compare", "slow", "absent")[0] == 4


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any], str]:
    code = main([*words, "--json"])
    streams = capsys.readouterr()
    return code, json.loads(streams.out), streams.err
