"""The benchmark of cases of the machine knows every case, and tells a right outcome from what was wrong before."""

from __future__ import annotations

import pytest
from machine_cases import EXPECTATIONS
from real_cases import cases_folder

SAME, OTHER = "01673373c104b6ae", "4d45f117d80a12c0"


@pytest.mark.parametrize(
    ("number", "output", "is_right"),
    [
        ("d03", "another zo-device is tuning\nrc=11\nrc=0\nanother zo-cloud prepare works\nrc=11\nrc=0\n", True),
        ("d03", "rc=0\nrc=0\nrc=0\nrc=0\n", False),
        ("d06", f"resume rc=0\n{SAME}\n{SAME}\n{OTHER}\n", True),
        ("d06", f"resume rc=0\n{SAME}\n{OTHER}\n{OTHER}\n", False),
        ("d06", f"resume rc=0\n{SAME}\n{SAME}\n{SAME}\n", False),
        ("d07", "name\nTraceback (most recent call last):\nrc=1\nrc=0\nrc=1\n", False),
        ("d10", "signing-key.pem cannot be written\nrc=7\nls: cannot access '/w/b-d10'\nrc=4\nrc=7\n", True),
        ("d10", "signing-key.pem cannot be written\nrc=7\n.workspace\nblobs\nrc=7\nrc=7\n", False),
    ],
)
def test_an_outcome_is_right_by_what_the_case_asks(number: str, output: str, is_right: bool) -> None:
    assert any(each.holds(output) for each in EXPECTATIONS[number]) is is_right


def test_every_case_of_the_machine_has_an_expectation() -> None:
    cases = cases_folder()
    if not cases.is_dir():
        pytest.skip(f"there is no folder {cases}")
    assert {path.name[:3] for path in cases.glob("d[0-9][0-9]-*")} == set(EXPECTATIONS)
