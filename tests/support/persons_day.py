"""Every command of ``zo-device`` once, on rows with a canary in them, in the order of a person's day."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from simulated_server import sign_reference
from tiny_bundle import TinyBundle
from traced_commands import CANARY

from shared.bundle.layout import ImageLayout

QUICK = ("--device", "cpu", "--backend", "reference")

TRACED_ELSEWHERE = {"serve"}
"""``serve`` listens on a loopback address: see ``tests/privacy/test_serving_stays_on_this_machine.py``."""

CANARY_ROWS = [
    {"messages": [{"role": "user", "content": f"Say {CANARY} {i}"}, {"role": "assistant", "content": f"{CANARY}."}]}
    for i in range(8)
]


def commands(folder: Path) -> dict[str, list[str]]:
    """Every command once, on the rows with the canary; the order is that of a person's day."""
    rows, run = str(folder / "rows.jsonl"), str(folder / "run")
    stick, copy = str(folder / "stick"), str(folder / "copy")
    (folder / "question.json").write_text(json.dumps({"messages": CANARY_ROWS[0]["messages"][:1]}))
    steps = ("--steps", "3", "--batch", "2", "--validate-every", "1")
    return {
        "import": ["import", stick],
        "doctor": ["doctor"],
        "list": ["list"],
        "inspect": ["inspect", "tiny"],
        "verify": ["verify", "tiny"],
        "plan": ["plan", "tiny", "--device", "cpu"],
        "data": ["data", "check", "tiny", "--data", rows],
        "tune": ["tune", "tiny", "--data", rows, *steps, "--output", run, *QUICK],
        "eval": ["eval", "tiny", "--data", rows, "--run", run, *QUICK],
        "generate": ["generate", "tiny", "--messages", str(folder / "question.json"), "--run", run,
                     "--max-new-tokens", "3", *QUICK],
        "chat": ["chat", "tiny", "--run", run, "--max-new-tokens", "3", *QUICK],
        "runs": ["runs", run],
        "runs report": ["runs", "report", run],
        "runs compare": ["runs", "compare", run, run, "--page", str(folder / "compared.html")],
        "export": ["export", "tiny", copy],
        "export delta": ["export", run, str(folder / "delta"), "--to", "delta"],
        "export hf": ["export", run, str(folder / "checkpoint"), "--to", "hf"],
        "share": ["share", run, str(folder / "shared"), "--yes"],
        "share journal": ["share", run, str(folder / "journal.tar"), "--as", "journal", "--yes"],
        "apply": ["apply", str(folder / "shared")],
        "completion": ["completion", "bash"],
        "rm": ["rm", "tiny"],
        "prune": ["prune"],
        "pull": ["pull", "http://127.0.0.1:9/tiny", "--quiet"],
    }  # fmt: skip


def prepare(folder: Path, bundle: TinyBundle) -> Path:
    """Put into a folder what a person has at the day's beginning: a bundle on a stick, and rows; return it."""
    shutil.copytree(bundle.layout.root, folder / "stick")
    sign_reference(ImageLayout(folder / "stick"), "tiny:latest")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in CANARY_ROWS))
    return folder
