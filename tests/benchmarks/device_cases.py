"""Runs the cases of rows as people have them, and counts those whose outcome is right.

A case (``c…`` in the folder of cases) is a script and a text that says what is right; below that text is written as
what can be compared, as ``real_cases.py`` does for the cases of model folders. A case needs what ``data check``,
``tune``, ``eval`` and ``generate`` take on a toy model: about a minute each. ``--only c07,c08`` runs some, and records
nothing. Never edits the cases.
Writes ``results/device_cases.json`` and ``cases.c_right``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from real_cases import Collection, Expectation, run_collection

EXPECTATIONS: dict[str, tuple[Expectation, ...]] = {
    # The prompt has as many tokens as the rows' prompts had, and the answer begins as the one that was learnt.
    "c01": (Expectation("0", (r"prompt_tokens 21 .Lily(?s:.)*was tuned with: 21", r"^[1-9]\d*\n\(lines of gen")),),
    "c02": (Expectation("", (r"prompt_tokens 14 (.Tim.*)\nprompt_tokens 14 \1",)),),
    # The same rows with the same cut: the same loss, with and without --max-tokens.
    "c03": (
        Expectation(
            "",
            (
                r"tune: validation {'loss': (\d\.\d{4})(?s:.)*eval --run: {'loss': \1",
                r"eval --run: {(.*'truncated_rows': 20)}\neval --run --max-tokens 24: {\1}",
            ),
        ),
    ),
    "c04": (Expectation("0 0 0 0 0 0"),),
    "c05": (Expectation("9 9", (r"line \d, message 2: .* leaves out tool_calls|leaves out tools",)),),
    "c07": (Expectation("9 9", (r"c07\.jsonl line 1: .*half of a surrogate pair",)),),
    "c08": (Expectation("", (r"prompt_tokens (\d+) (.*)\nprompt_tokens \1 \2", "longest 6 tokens, answer included")),),
    "c09": (
        Expectation(
            "0 0 0",
            (r'Row 1 \(c09\.tsv line 2\).*⟧: (?:<s>)?\s*She said "hi" to him', r"\b(?:bad|good): \d, (?:bad|good): \d"),
        ),
    ),
    "c10": (Expectation("0 0 0 9 0", ("2 fields, none of a known name",)),),
    "c11": (Expectation("0 0", (r"^[1-9]\d*\n\(lines of tune that say",)),),
    "c12": (
        Expectation(
            "9 9", (r"c12\.jsonl line 3, message 1: .*no element 0", r"c12\.jsonl line 3, message 1: .*alternate")
        ),
    ),
    "c13": (
        Expectation("0", (r"Row 1 .*⟦<⟧⟦s⟧⟦>⟧.*⟦<⟧⟦/⟧⟦s⟧⟦>⟧.*⟦1⟧⟦5⟧",)),
        Expectation("9", (r"c13\.jsonl line 1: ",)),
    ),
    "c14": (Expectation("9", ("these rows have the same label", "--label-words")),),
    "c15": (Expectation("0", ("differ by case or blanks alone",)),),
    "c16": (
        Expectation(
            "9 9 9",
            (
                "c16.jsonl line 1: 'text' is empty",
                r"c16b.jsonl line \d: 'completion' is empty",
                r"c16c.jsonl line \d, message 2: an answer without text",
            ),
        ),
    ),
    "c17": (Expectation("0"),),
    "c19": (Expectation("9 9 9", ("c19a.jsonl line 1 is not UTF-8", "c19b.jsonl line 1 is not UTF-8")),),
}
"""Number of a case → what is right, any of them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the cases of rows."""
    return run_collection(Collection(EXPECTATIONS, "device_cases", "cases.c_right"), __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
