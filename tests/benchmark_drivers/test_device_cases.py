"""The benchmark of cases of rows knows every case, and tells a right outcome from what was wrong before."""

from __future__ import annotations

import pytest
from device_cases import EXPECTATIONS
from real_cases import cases_folder

RIGHT_OF_C02 = "validation loss: bundle 9.363 best 0.00034\nprompt_tokens 14 'Tim'\nprompt_tokens 14 'Tim'\n"
EVALUATED = "'loss': 2.303963291197488, 'accuracy': 0.5, 'rows': 20, 'truncated_rows': 20}"
RIGHT_OF_C03 = (
    "tune: validation {'loss': 2.3039633652130433, 'accuracy': 0.5, 'rows': 20}\n"
    f"eval --run: {{{EVALUATED}\neval --run --max-tokens 24: {{{EVALUATED}\n"
)


@pytest.mark.parametrize(
    ("number", "output", "is_right"),
    [
        ("c02", RIGHT_OF_C02, True),
        ("c02", RIGHT_OF_C02.replace("14", "15", 1), False),
        ("c03", RIGHT_OF_C03, True),
        ("c03", RIGHT_OF_C03.replace("'truncated_rows': 20", "'truncated_rows': 0", 1), False),
        ("c10", "a rc=0\nb rc=0\nc rc=0\nError: 2 fields, none of a known name\nd rc=9\ne rc=0\n", True),
        ("c10", "a rc=9\nb rc=9\nc rc=9\nd rc=9\ne rc=9\n", False),
        ("c13", "Row 1 (c13.jsonl line 2): Price?⟦was⟧⟦⟧⟦⟧\nrc=0\n", False),
        ("c13", "Row 1 (c13.jsonl line 2): Price?⟦ ⟧⟦<⟧⟦s⟧⟦>⟧⟦2⟧⟦<⟧⟦/⟧⟦s⟧⟦>⟧⟦ n⟧⟦ow⟧⟦1⟧⟦5⟧⟦</s>⟧\nrc=0\n", True),
        ("c15", "Warning: Labels that differ by case or blanks alone are different answers\nrc=0\n", True),
        ("c17", "rc=0\n", True),
    ],
)
def test_an_outcome_is_right_by_what_the_case_asks(number: str, output: str, is_right: bool) -> None:
    assert any(each.holds(output) for each in EXPECTATIONS[number]) is is_right


def test_every_case_of_rows_has_an_expectation() -> None:
    cases = cases_folder()
    if not cases.is_dir():
        pytest.skip(f"there is no folder {cases}")
    assert {path.name[:3] for path in cases.glob("c[0-9][0-9]-*")} == set(EXPECTATIONS)
