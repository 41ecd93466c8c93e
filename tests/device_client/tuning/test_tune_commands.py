"""``tune``, ``eval``, ``runs`` and ``data check`` by the command line."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from tiny_bundle import TinyBundle
from tiny_run import planned

from device_client.cli import main
from device_client.commands.tune_report import measured_line
from device_client.planning.memory_plan import plan_memory
from device_client.planning.workload import Workload
from device_client.tuning.run_directory import load_theta
from shared.bundle.read import Bundle


@pytest.fixture
def home(tmp_path: Path, tiny_bundle: TinyBundle, kernels: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZO_DEVICE_HOME", str(tmp_path))
    shutil.copytree(kernels, tmp_path / "backends")
    (tmp_path / "bundles").symlink_to(tiny_bundle.layout.root)
    return tmp_path


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, object], str]:
    code = main([*words, "--json"])
    streams = capsys.readouterr()
    return code, json.loads(streams.out), streams.err


def test_tune_eval_and_runs_by_command(home: Path, rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("tune", "--data", str(rows), "--steps", "6", "--batch", "4", "--device", "cpu")
    code, tuned, spoken = call(capsys, *words)
    assert code == 0
    assert "best" in spoken
    assert re.search(r"^Measured: .*; curvature [^;]+", spoken, flags=re.MULTILINE)
    run_name = Path(str(tuned["run"])).name
    code, again, spoken = call(capsys, *words)
    assert (code, again["was_finished"], again["result"]) == (0, True, tuned["result"])
    assert "finished" in spoken

    code, scored, _ = call(capsys, "eval", "--data", str(rows), "--run", run_name, "--device", "cpu")
    assert (code, scored["rows"]) == (0, 12)
    code, own, _ = call(capsys, "eval", "--data", str(rows), "--device", "cpu")
    assert own["loss"] != scored["loss"]

    code, listed, _ = call(capsys, "runs")
    (entry,) = listed["runs"]  # type: ignore[misc]
    assert (entry["name"], entry["state"], entry["steps_done"]) == (run_name, "finished", 6)
    (home / "runs" / run_name / "result.json").write_text("{")
    _, listed, _ = call(capsys, "runs")
    assert listed["runs"][0]["state"] == "damaged"  # type: ignore[index]


def test_first_order_by_command(home: Path, rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("tune", "--data", str(rows), "--steps", "6", "--batch", "4", "--device", "cpu")
    code, _, spoken = call(capsys, *words, "--gradient", "first-order", "--lr", "0.02")
    assert code == 0
    assert "6 steps (18 forward passes), stopped by steps" in spoken
    assert "ΔL" not in spoken
    assert "First order would fit" not in spoken
    code, _, spoken = call(capsys, *words)
    assert code == 0
    assert spoken.count("First order would fit, too") == 1


def test_a_run_says_what_it_measured() -> None:
    """0.002 nats per step of 0.5 s: 120 steps a minute."""
    measured = {"signal_share": 0.25, "curvature": 390.4, "useful_batch": 48.0, "expected_fall_per_step": 0.002}
    assert measured_line(measured, 0.5) == (
        "Measured: signal share 25%; curvature 390; more than 48 rows per step buy little; "
        "expected fall of the loss 0.24 nats per minute."
    )


def test_a_run_that_found_nothing_says_so() -> None:
    measured = {"signal_share": 0.0, "curvature": None, "useful_batch": None, "expected_fall_per_step": None}
    assert measured_line(measured, None) == (
        "Measured: no signal that the rows of a batch agree on; curvature not measured."
    )


def test_eval_chooses_its_micro_batch_by_the_memory_budget(
    home: Path, rows: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("eval", "--data", str(rows), "--device", "cpu")
    code, roomy, _ = call(capsys, *words)
    assert (code, roomy["micro_batch_rows"]) == (0, 24)  # 12 rows of two candidates each
    _, asked, _ = call(capsys, *words, "--micro-batch", "3")
    assert asked["micro_batch_rows"] == 3
    columns = max(example.token_count for example in planned(bundle, rows).data.test)
    enough_for_five = plan_memory(bundle.config, Workload(5, columns, 4), device_type="cpu").total_bytes
    code, tight, _ = call(capsys, *words, "--memory-budget", f"{enough_for_five + 100}")
    assert (code, tight["micro_batch_rows"]) == (0, 5)
    assert tight["loss"] == pytest.approx(roomy["loss"], abs=1e-5)
    code, _, spoken = call(capsys, *words, "--memory-budget", f"{enough_for_five}", "--micro-batch", "6")
    assert code == 8
    assert "--memory-budget" in spoken


def test_a_spent_time_budget_says_how_to_go_on(home: Path, rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("tune", "--data", str(rows), "--steps", "4000", "--validate-every", "1000", "--device", "cpu")
    code, tuned, spoken = call(capsys, *words, "--time-budget", "0.1")
    assert code == 0
    assert tuned["result"]["stopped_by"] == "time budget"  # type: ignore[index]
    assert "run the same command again to continue" in spoken
    _, _, spoken = call(capsys, *words, "--time-budget", "0.1")
    assert "Going on after step" in spoken


def test_data_check_counts_and_shows_scored_tokens(home: Path, rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found, spoken = call(capsys, "data", "check", "--data", str(rows), "--max-tokens", "14")
    assert code == 0
    counts = found["rows"]["training"]  # type: ignore[index]
    assert (counts["count"], counts["longest_tokens"]) == (10, 14)
    assert counts["truncated_rows"] == 10
    assert found["token_histogram"] == {"16": 10}
    assert "⟦y⟧⟦e⟧⟦s⟧" in spoken
    assert re.search(r"no: \d+, yes: \d+", spoken)
    assert "good" not in json.dumps(found)


@pytest.mark.parametrize(("labels", "is_warned"), [("xxxxxxxxyy", False), ("xxxxxxxxxx", True)])
def test_data_check_warns_where_all_training_rows_have_the_same_answer(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], labels: str, is_warned: bool
) -> None:
    rows = tmp_path / "labelled.jsonl"
    rows.write_text("".join(json.dumps({"text": "a", "label": label}) + "\n" for label in labels))
    words = ("data", "check", "--data", str(rows), "--validation", str(rows), "--label-words", "x=no,y=yes")
    assert ("all training rows have the same answer" in call(capsys, *words)[2]) is is_warned


def test_data_check_accepts_the_rows_that_its_help_shows(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["data", "check", "--help"])
    shown = capsys.readouterr().out.splitlines()
    lines = [line.strip() for line in shown[shown.index("rows of a .jsonl file, one per line and all of one kind:") :]]
    objects = [line for line in lines if line.startswith("{")]
    labelled, *others = objects
    table = [line for line in lines if "," in line and line not in objects][-2:]
    files = {
        "labelled.jsonl": [labelled, labelled.replace("negative", "positive")],
        "table.csv": [*table, table[1].replace("negative", "positive")],
        **{f"{number}.jsonl": [line, line] for number, line in enumerate(others)},
    }
    assert len(files) == 4
    for name, rows_of_file in files.items():
        (home / name).write_text("\n".join(rows_of_file))
        code, found, spoken = call(
            capsys, "data", "check", "--data", str(home / name), "--validation", str(home / name)
        )
        assert (code, found["rows"]["training"]["count"]) == (0, 2), spoken  # type: ignore[index]


@pytest.mark.parametrize(
    ("content", "words", "code", "told"),
    [
        ('{"text": "a", "label": "x"}\n' * 9 + '{"text": "b"}\n', (), 9, "line 10: 'label' is missing"),
        ("", (), 9, "holds no rows"),
        (None, (), 9, "there is no file"),
        ('{"text": "a", "label": "x"}\n' * 9, (), 9, "at least two labels"),
        ("good", ("--lr", "fast"), 2, "--lr"),
        ("good", ("--step", "0"), 2, "--step"),
        ("good", ("--step", "0.8", "--lr", "1e-6"), 2, "one of them"),
        ("good", ("--directions", "one-sided"), 2, "--queries 4"),
        ("good", ("--memory-budget", "1MB"), 8, "memory budget"),
        ("good", ("--lr", "1e38"), 10, "--lr"),
        ("good", ("--seed", "-1"), 2, "--seed"),
        ("good", ("--steps", "0"), 2, "from 1 on"),
        ("good", ("--gradient", "first-order", "--queries", "4"), 2, "draws no directions"),
        ("good", ("--gradient", "first-order", "--step-length", "0.1"), 2, "--lr is its rate"),
        ("good", ("--validation-share", "1"), 2, "between 0 and 1"),
        ("good", ("--epsilon", "nan"), 2, "above 0"),
        ("good", ("--time-budget", "soon"), 2, "--time-budget"),
        ("good", ("--task", "RTE"), 2, "exactly one"),
        ("good", ("--device", "cuda:99"), 8, "CUDA"),
    ],
)
def test_bad_input_has_its_exit_code_and_says_what_to_do(
    home: Path, rows: Path, capsys: pytest.CaptureFixture[str], content: str | None, words: tuple[str, ...], code: int,
    told: str,
) -> None:  # fmt: skip
    if content is None:
        rows.unlink()
    elif content != "good":
        rows.write_text(content)
    found, printed, spoken = call(capsys, "tune", "--data", str(rows), "--steps", "60", "--device", "cpu", *words)
    assert found == code
    assert told in spoken
    assert "error" in printed


def test_a_validation_label_unseen_in_training_is_exit_9(
    home: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = home / "validation.jsonl"
    other.write_text('{"text": "a", "label": "perhaps"}\n')
    code, _, spoken = call(capsys, "tune", "--data", str(rows), "--validation", str(other))
    assert code == 9
    assert "validation.jsonl line 1: its label" in spoken
    assert "perhaps" not in spoken


def test_a_diverged_run_keeps_its_best_values(home: Path, rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--steps", "60", "--lr", "1e38", "--output", str(home / "mine"), "--device", "cpu")
    code, _, _ = call(capsys, "tune", "--data", str(rows), *words)
    assert code == 10
    assert torch.isfinite(load_theta(home / "mine")).all()
    assert call(capsys, "eval", "--data", str(rows), "--run", str(home / "mine"), "--device", "cpu")[0] == 0


def test_going_on_with_a_run_begun_otherwise_is_exit_11(
    home: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("tune", "--data", str(rows), "--steps", "6", "--device", "cpu", "--output", str(home / "mine"))
    assert call(capsys, *words, "--time-budget", "0.001")[0] == 0
    for other, told in ((("--epsilon", "0.1"), "holds another run"), (("--micro-batch", "3"), "was begun with")):
        code, printed, spoken = call(capsys, *words, *other)
        assert (code, printed["error"]["type"]) == (11, "conflict")  # type: ignore[index]
        assert told in spoken
    assert call(capsys, *words)[0] == 0


def test_an_unknown_run_is_exit_4(home: Path, rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, spoken = call(capsys, "eval", "--data", str(rows), "--run", "absent")
    assert code == 4
    assert "zo-device runs" in spoken


def test_runs_begun_with_output_are_listed_by_their_folder_or_the_one_they_lie_in(
    home: Path, rows: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = home / "elsewhere" / "mine"
    words = ("--steps", "2", "--device", "cpu", "--output", str(mine))
    assert call(capsys, "tune", "--data", str(rows), *words)[0] == 0
    (home / "elsewhere" / "model").mkdir()
    (home / "elsewhere" / "model" / "config.json").write_text("{}")
    monkeypatch.chdir(mine)
    for folder in (str(mine), str(mine.parent), ".", ".."):
        code, listed, spoken = call(capsys, "runs", folder)
        assert code == 0
        assert [(run["name"], run["path"]) for run in listed["runs"]] == [("mine", str(mine))]  # type: ignore[union-attr,index]
        assert "mine" in spoken
    assert call(capsys, "runs")[1] == {"runs": []}
    assert call(capsys, "runs", str(home / "absent"))[0] == 4


def test_no_runs_is_an_empty_list(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "runs")[1] == {"runs": []}
