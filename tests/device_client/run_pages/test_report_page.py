"""The page of a run, in a browser: self-contained, readable on a phone, and open about the rows it holds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from browser import look_at
from written_run import write_run

from device_client.run_pages.report_page import report_page, write_report
from device_client.run_pages.run_view import read_run

ANSWERS: dict[str, Any] = {
    "holds": "rows", "part": "test", "rows": 3, "labels": ["bad", "good"],
    "confusion": {"before": [[0, 2], [0, 1]], "after": [[2, 0], [0, 1]]},
    "shown": [
        {"place": "rows.jsonl line 1", "prompt": "<b>zebra</b> " + 80 * "long", "right": "bad", "before": "good",
         "after": "bad"},
        {"place": "rows.jsonl line 2", "prompt": "lion", "right": None, "before": "", "after": "roars"},
    ],
}  # fmt: skip


def test_the_page_fits_a_phone_in_light_and_dark_and_loads_nothing(tmp_path: Path) -> None:
    page = report_page(read_run(write_run(tmp_path / "run", answers=ANSWERS)))
    light, dark = look_at(page, tmp_path, width=375), look_at(page, tmp_path, width=375, is_dark=True)
    for seen in (light, dark):
        assert (seen.too_wide, seen.loads, seen.console) == ([], [], [])
        assert seen.scroll_width <= seen.width == 375
    assert light.ink != dark.ink


def test_the_page_refers_to_nothing_and_runs_nothing(tmp_path: Path) -> None:
    text = report_page(read_run(write_run(tmp_path, answers=ANSWERS))).decode()
    assert set(re.findall(r"https?://[^\"'\s]*", text)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<script|<link|<img|<iframe|@import|url\(|\son\w+=|href=|\ssrc=", text)


def test_rows_are_shown_escaped_with_both_answers_and_said_at_the_top(tmp_path: Path) -> None:
    text = report_page(read_run(write_run(tmp_path, answers=ANSWERS))).decode()
    assert text.index("This page holds rows of the data") < text.index("Results")
    assert "&lt;b&gt;zebra&lt;/b&gt;" in text
    assert "<dt>right</dt><dd>bad</dd>" in text
    assert "<dd>(nothing)</dd>" in text
    assert text.count("<dt>right</dt>") == 1  # the other row has no answer


def test_without_rows_none_is_on_the_page_and_the_counts_stay(tmp_path: Path) -> None:
    text = report_page(read_run(write_run(tmp_path, answers=ANSWERS)), has_rows=False).decode()
    assert "No row of anybody's data is on this page" in text
    assert "zebra" not in text
    assert "lion" not in text
    assert text.count('class="matrix"') == 2


def test_the_page_has_every_curve_of_a_run(tmp_path: Path) -> None:
    text = report_page(read_run(write_run(tmp_path))).decode()
    for title in (
        "loss, nats per answer against forward passes", "loss, nats per answer against seconds worked",
        "|ΔL|, nats against steps", "signal share against steps", "steps per second against steps",
    ):  # fmt: skip
        assert f"<title>{title}</title>" in text
    assert "noise floor" in text
    assert "3.0 MiB" in text


def test_a_run_that_is_not_finished_and_one_of_an_earlier_release_have_pages(tmp_path: Path) -> None:
    young = write_run(tmp_path / "young", is_finished=False, gradients=(), losses=())
    assert "0 of 0" in report_page(read_run(young)).decode()
    old = write_run(tmp_path / "old")
    (old / "seconds.jsonl").unlink()
    assert "seconds worked" not in report_page(read_run(old)).decode()


def test_a_page_is_for_its_owner_alone(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", answers=ANSWERS)
    for page in (write_report(folder), write_report(folder, tmp_path / "elsewhere.html", has_rows=False)):
        assert page.stat().st_mode & 0o777 == 0o600
