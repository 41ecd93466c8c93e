"""Opens a page in headless Chromium as a phone would, and tells what it saw. Nothing can be loaded from outside.

The page stands in a frame, because a window cannot be narrower than 500 pixels. A content security policy forbids every
load but inline style and script, so an attempt is an event and a line in the console.
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

_POLICY = (
    '<meta http-equiv="Content-Security-Policy" '
    "content=\"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'\">"
)
_LOOK = """
const page = this.contentDocument, root = page.documentElement;
const wide = [...page.querySelectorAll('body *')].filter(e =>
    e.getBoundingClientRect().right > root.clientWidth + 0.5 && !e.parentElement.closest('.scroll'));
const loads = this.contentWindow.performance.getEntriesByType('resource').map(entry => entry.name);
const result = {width: root.clientWidth, scroll_width: root.scrollWidth, loads,
    too_wide: wide.map(e => e.outerHTML.slice(0, 80)), height: root.scrollHeight,
    ink: getComputedStyle(page.body).color};
document.getElementById('result').textContent = JSON.stringify(result);
"""


@dataclass(frozen=True)
class Seen:
    """What the browser saw.

    Attributes:
        width: Width of the page's view, CSS pixels.
        scroll_width: Width of its content; more than ``width`` means that it scrolls sideways.
        too_wide: Elements that reach out of the view and lie in no box that scrolls.
        loads: Addresses of everything that the page loaded.
        height: Height of its content.
        ink: Colour of the text.
        console: Lines of the console: errors, refused loads.
    """

    width: int
    scroll_width: int
    too_wide: list[str]
    loads: list[str]
    height: int
    ink: str
    console: list[str]


def find_browser() -> str:
    """Return the browser's path; without one the test is skipped, but fails in CI."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        missing = "there is no chromium here; apt-get install chromium"
        pytest.fail(missing) if os.environ.get("CI") == "true" else pytest.skip(missing)
    return path


def look_at(page: bytes, folder: Path, *, width: int = 390, is_dark: bool = False) -> Seen:
    """Open a page ``width`` pixels wide and 844 high."""
    text = page.decode().replace("<head>", f"<head>{_POLICY}", 1)
    frame = folder / "frame.html"
    frame.write_text(
        f'<!doctype html><meta charset="utf-8"><body><iframe srcdoc="{html.escape(text)}" width="{width}" height="844" '
        f'style="border:0" onload="{html.escape(_LOOK)}"></iframe><pre id="result"></pre></body>',
        encoding="utf-8",
    )
    scheme = 0 if is_dark else 1
    done = subprocess.run(
        [
            find_browser(), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
            "--enable-logging=stderr", f"--user-data-dir={folder / 'profile'}", f"--window-size={max(width, 500)},844",
            f"--blink-settings=preferredColorScheme={scheme}", "--dump-dom", frame.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    found = re.search(r'<pre id="result">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found is not None, done.stdout[-500:]
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return Seen(**json.loads(html.unescape(found[1])), console=console)
