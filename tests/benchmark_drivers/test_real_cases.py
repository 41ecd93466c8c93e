"""The benchmark of cases counts as right what its expectations say, and nothing that ends in a crash."""

from __future__ import annotations

from pathlib import Path

import pytest
import real_cases
from real_cases import EXPECTATIONS, Expectation, run_case

REFUSED = "error: the weights are already quantised: GPTQ\nprepare rc=2\n"


@pytest.mark.parametrize(
    ("expectation", "output", "is_right"),
    [
        (Expectation("2", ("GPTQ",)), REFUSED, True),
        (Expectation("2", ("AWQ",)), REFUSED, False),
        (Expectation("0", ("GPTQ",)), REFUSED, False),
        (Expectation("2"), REFUSED + "plan rc=2\n", True),  # further codes are not compared
        (Expectation("2"), "prepare rc=21\n", False),
        (Expectation("2"), REFUSED + "Error: unexpected TypeError\n", False),
        (Expectation("2"), REFUSED + "Traceback (most recent call last):\n", False),
        (Expectation("0 [02]"), "a rc=0\nb rc=2\n", True),
        (Expectation("0", agreements=1), "rc=0\nsame argmax at 99.8 %\n", True),
        (Expectation("0", agreements=1), "rc=0\nsame argmax at 94.9 %\n", False),
        (Expectation("0", agreements=1), "rc=0\n", False),
        (Expectation("", (r"native (.*)\nreference \1",)), "native 5 ab\nreference 5 ab\n", True),
        (Expectation("", (r"native (.*)\nreference \1",)), "native 5 ab\nreference 5 cd\n", False),
    ],
)
def test_an_outcome_is_right_by_its_codes_and_what_is_found(
    expectation: Expectation, output: str, is_right: bool
) -> None:
    assert expectation.holds(output) == is_right


def test_a_case_runs_with_its_environment_and_old_names_of_modules(tmp_path: Path) -> None:
    case = tmp_path / "cases" / "m99-mine"
    case.mkdir(parents=True)
    (tmp_path / "cases" / "env.sh").write_text(
        f"CASES={tmp_path / 'cases'}; BIN=${{BIN}}; PY=$BIN/python; export CASES BIN PY WORK\n"
    )
    (tmp_path / "cases" / "setup.sh").write_text("mkdir -p $WORK\n")
    old = "from cloud_service.pipeline.tokenization import load_encoder; print(load_encoder.__module__)"
    (case / "cmd.sh").write_text(f"$PY -c '{old}'; false; echo prepare rc=$?\n")
    output = run_case(tmp_path / "cases", "m99-mine", tmp_path)
    assert output == "cloud_service.pipeline.model.tokenization\nprepare rc=1\n"


def test_every_case_of_a_model_folder_has_an_expectation() -> None:
    cases = real_cases.cases_folder()
    if not cases.is_dir():
        pytest.skip(f"there is no folder {cases}")
    assert {path.name[:3] for path in cases.glob("m[0-9][0-9]-*")} == set(EXPECTATIONS)
