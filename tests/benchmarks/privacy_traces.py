"""How many commands work without a network, and leave no word of a person's rows where it does not belong.

    privacy.commands_traced    commands of ``zo-device``, run in a network namespace without interfaces under strace,
                               that ended well and called for no socket but local pairs; not ``pull``, nor ``serve``:
                               that listens on a loopback address and has a trace of its own in ``tests/privacy``

The tiny bundle serves: what is traced is the program, not the model. Needs strace and the right to make a network
namespace. Takes half a minute. Run: python tests/benchmarks/privacy_traces.py
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "support")]

from persons_day import commands, prepare  # noqa: E402
from recording import record_headlines, write_result  # noqa: E402
from tiny_bundle import make_tiny_bundle  # noqa: E402
from traced_commands import CANARY, files_with, trace  # noqa: E402


def main() -> None:
    """Trace, write the result, record the headline."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "person"
        folder.mkdir()
        prepare(folder, make_tiny_bundle(Path(scratch) / "bundle"))
        order = commands(folder)
        traced = trace(order, folder, typed=f"Hi {CANARY}\n")
        kept = [str(path) for path in files_with(CANARY, folder)]
    calls = {
        name: {"exit_code": outcome.exit_code, "network_calls": len(outcome.network_calls), "command": order[name][0]}
        for name, outcome in traced.items()
    }
    silent = {call["command"] for call in calls.values() if not call["exit_code"] and not call["network_calls"]}
    failed = {call["command"] for call in calls.values() if call["exit_code"] or call["network_calls"]}
    path = write_result("privacy_traces", {"calls": calls, "files_with_a_word_of_the_rows": kept})
    record_headlines(path, {"privacy.commands_traced": (len(silent - failed), "commands without a network call")})
    sys.stdout.write(path.read_text())


if __name__ == "__main__":
    main()
