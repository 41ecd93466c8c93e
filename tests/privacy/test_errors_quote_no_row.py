"""What is wrong with a row is said without the row: file, line and kind of fault, never a word of the person's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_bundle import TinyBundle
from traced_commands import CANARY

from device_client.cli import main

SAID = {"role": "user", "content": CANARY}
ANSWERED = {"role": "assistant", "content": CANARY}
FAULTS: dict[str, Any] = {
    "not JSON": f'{{"prompt": "{CANARY}", "completion": ',
    "not an object": f'"{CANARY}"',
    "no completion": {"prompt": CANARY},
    "a completion that is a number": {"prompt": CANARY, "completion": 5},
    "a completion that is a list of texts": {"prompt": "a", "completion": [CANARY]},
    "a label that is an object": {"text": CANARY, "label": {CANARY: 1}},
    "no messages": {"messages": []},
    "messages that are text": {"messages": CANARY},
    "no answer": {"messages": [SAID]},
    "a message without a role": {"messages": [{"content": CANARY}, ANSWERED]},
    "content that is a number": {"messages": [SAID, {"role": "assistant", "content": 5}]},
    "a part that is a picture": {
        "messages": [{"role": "user", "content": [{"type": "image", "url": CANARY}]}, ANSWERED]
    },
    "a tool call that the template drops": {
        "messages": [SAID, {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": CANARY}}]}]
    },
    "a lone surrogate": f'{{"prompt": "{CANARY} \\ud800", "completion": "b"}}',
    "a number that is not finite": f'{{"prompt": "{CANARY}", "completion": NaN}}',
}  # fmt: skip


@pytest.fixture
def tiny_home(tmp_path: Path, tiny_bundle: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZO_DEVICE_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "bundles").symlink_to(tiny_bundle.layout.root)
    return tmp_path


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_without_the_row(tiny_home: Path, fault: str, capfd: pytest.CaptureFixture[str]) -> None:
    row = FAULTS[fault]
    rows = tiny_home / "rows.jsonl"
    line = row if isinstance(row, str) else json.dumps(row)
    rows.write_text(f"{line}\n" * 6)  # enough to hold some out

    code = main(["data", "check", "tiny", "--data", str(rows), "--json"])

    said = capfd.readouterr()
    assert code == 9, said.err
    assert "rows.jsonl line " in said.err
    assert CANARY not in said.err + said.out


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.csv", f"prompt,completion\n{CANARY}\n"),
        ("rows.csv", f'prompt,completion\n"{CANARY},b\n'),
        ("rows.tsv", f"text\tlabel\n{CANARY}\tone\ttwo\n"),
    ],
)
def test_a_fault_of_a_table_is_named_without_the_row(
    tiny_home: Path, name: str, content: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (tiny_home / name).write_text(content)

    code = main(["data", "check", "tiny", "--data", str(tiny_home / name)])

    said = capfd.readouterr()
    assert code == 9, said.err
    assert CANARY not in said.err + said.out
