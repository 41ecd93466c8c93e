"""The operator's pages in a real browser: they fit a phone, load nothing, and raise no error."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import look_at
from example_report import example_report, example_run

from cloud_service.pipeline.report.page import report_page

PHONE = 390


@pytest.mark.parametrize("blocks", [2, 80])
def test_the_report_fits_a_phone_and_loads_nothing(blocks: int, tmp_path: Path) -> None:
    page = report_page(example_report(blocks, worst=0.5), example_run())
    seen = look_at(page, tmp_path, width=PHONE)
    assert seen.width == PHONE
    assert seen.scroll_width <= PHONE
    assert seen.too_wide == []
    assert seen.loads == []
    assert seen.console == []


def test_the_report_follows_the_readers_dark_mode(tmp_path: Path) -> None:
    page = report_page(example_report(), None)
    inks = {is_dark: look_at(page, tmp_path, is_dark=is_dark).ink for is_dark in (False, True)}
    assert inks == {False: "rgb(29, 35, 41)", True: "rgb(230, 237, 243)"}


def test_a_page_that_is_too_wide_is_noticed(tmp_path: Path) -> None:
    page = b"<!doctype html><html><head></head><body><div style='width:600px'>wide</div></body></html>"
    seen = look_at(page, tmp_path, width=PHONE)
    assert seen.scroll_width > PHONE
    assert len(seen.too_wide) == 1


def test_a_page_that_loads_from_outside_is_noticed(tmp_path: Path) -> None:
    page = b"<!doctype html><html><head></head><body><img src='http://127.0.0.1:9/x.png' alt=''></body></html>"
    assert any("Content Security Policy" in line for line in look_at(page, tmp_path).console)


def test_a_page_with_a_script_error_is_noticed(tmp_path: Path) -> None:
    page = b"<!doctype html><html><head></head><body><script>nowhere()</script></body></html>"
    assert any("nowhere" in line for line in look_at(page, tmp_path).console)
