"""Covered shares worked by hand; the measurement against a plain loop; the figures' document, table and page."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_checkpoint import build_checkpoint, write_text
from torch.nn.functional import cross_entropy

from cloud_service.cli import main
from cloud_service.pipeline.calibration.sequences import Calibration, tokens_digest
from cloud_service.pipeline.fisher.launchers.local import FisherWork, LocalLauncher
from cloud_service.pipeline.fisher.totals import FisherTotals
from cloud_service.pipeline.model.load_model import LoadedModel, load_model, read_outline
from cloud_service.pipeline.opening.planned_model import Means
from cloud_service.progress import SilentProgress
from cloud_service.sources import SourcePolicy
from cloud_service.studies.coverage import (
    CRITERIA,
    CoverageData,
    Ranking,
    count_passes,
    covered_shares,
    measure_coverage,
    rank_largest,
    ranking_overlap,
)
from cloud_service.studies.coverage_run import CoverageRequest, MeasuredCoverage, run_coverage
from cloud_service.studies.first_order import FirstOrderSettings
from shared.api import CalibrationSpec
from shared.errors import Conflict, DataError, Diverged, Interrupted, ResourceError, UnsupportedModel
from shared.file_lock import exclusive

FISHER = {"a": torch.tensor([[4.0, 0.0], [3.0, 1.0]]), "b": torch.tensor([2.0, 2.0, 0.0, 0.0])}


def ranked(**indices: list[int]) -> Ranking:
    return {name: np.array(index, dtype=np.int32) for name, index in indices.items()}


def test_a_share_is_the_mean_over_tensors_of_the_covered_part() -> None:
    best = ranked(a=[0, 2, 3, 1], b=[0, 1, 2, 3])
    half, quarter = covered_shares(FISHER, best, (0.5, 0.25))
    # a: (4+3)/8 and 4/8; b: (2+2)/4 and 2/4.
    assert (half.mean, half.std) == (pytest.approx((7 / 8 + 1) / 2), pytest.approx(1 / 16))
    assert (quarter.mean, quarter.std) == (0.5, 0.0)


def test_a_ranking_is_judged_in_its_own_order() -> None:
    assert covered_shares(FISHER, ranked(a=[1, 0, 2, 3], b=[2, 3, 0, 1]), (0.25,))[0].mean == 0


@pytest.mark.parametrize("values", [torch.zeros(4), torch.tensor([1.0])])
def test_a_tensor_without_gradient_or_without_a_chosen_weight_is_covered_by_nothing(values: torch.Tensor) -> None:
    assert covered_shares({"a": values}, ranked(a=[0, 1][: len(values)]), (0.25,))[0].mean == 0


def test_the_largest_come_first_and_ties_by_position() -> None:
    assert rank_largest(FISHER.items(), 0.75)["a"].tolist() == [0, 2, 3]
    assert rank_largest(FISHER.items(), 0.75)["b"].tolist() == [0, 1, 2]


def test_an_infinite_gradient_is_named() -> None:
    with pytest.raises(UnsupportedModel, match="a value of a is not finite"):
        rank_largest({"a": torch.tensor([1.0, float("inf")])}.items(), 0.5)


def test_overlap_counts_weights_of_all_tensors_alike() -> None:
    first, second = ranked(a=[0, 1, 2, 3], b=[5, 6]), ranked(a=[3, 2, 9, 0], b=[6, 7])
    sizes = {"a": 8, "b": 4}
    assert ranking_overlap(first, second, sizes, 0.5) == 4 / 6  # 0, 2, 3 and 6 of six
    assert ranking_overlap(first, second, sizes, 0.25) == 0  # 0, 1 and 5 against 3, 2 and 6
    assert ranking_overlap(first, second, sizes, 0.01) == 0  # none at all


@pytest.fixture
def model(tmp_path: Path) -> LoadedModel:
    return load_model(read_outline(build_checkpoint(tmp_path / "tiny")), device="cpu", dtype=torch.float32)


def rows_of(first: int, count: int) -> Calibration:
    tokens = (torch.arange(count * 12, dtype=torch.int32).view(count, 12) * (first + 3)) % 250
    starts = torch.full((count,), 9, dtype=torch.int32)
    return Calibration(tokens, starts, torch.full((count,), 11, dtype=torch.int32))


TEXT = Calibration.of_windows((torch.arange(60).view(3, 20) * 7) % 250)


def data_of() -> CoverageData:
    return CoverageData(rows_of(1, 4), rows_of(2, 4), rows_of(5, 6))


def weights_of(model: LoadedModel) -> dict[str, torch.nn.Parameter]:
    return {name: model.parameters[name] for name in model.outline.linear_names}


def plain_fisher(model: LoadedModel, rows: Calibration) -> dict[str, torch.Tensor]:
    """Sum of squared per-row gradients by autograd.grad, nothing shared with the code under test."""
    weights = weights_of(model)
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for weight in weights.values():
        weight.requires_grad_(True)
    for tokens, start, end in zip(rows.tokens.long(), rows.starts.tolist(), rows.ends.tolist(), strict=True):
        logits = model.network(input_ids=tokens[None]).logits[0]
        loss = cross_entropy(logits[start - 1 : end - 1], tokens[start:end])
        gradients = torch.autograd.grad(loss, list(weights.values()))
        for name, gradient in zip(weights, gradients, strict=True):
            total[name] += gradient**2
    return total


def by_text(model: LoadedModel) -> Ranking:
    return rank_largest(plain_fisher(model, TEXT).items())


def test_shares_equal_a_plain_sort_of_plain_gradients(model: LoadedModel) -> None:
    data = data_of()
    chosen_by = {"text_static": TEXT, "task_static": data.selecting, "in_sample": data.measuring}
    expected: dict[str, list[float]] = {}
    measuring = plain_fisher(model, data.measuring)
    for criterion, rows in chosen_by.items():
        shares = []
        for name, values in plain_fisher(model, rows).items():
            top = values.flatten().argsort(descending=True)[: round(0.01 * values.numel())]
            shares.append(float(measuring[name].flatten()[top].sum() / measuring[name].sum()))
        expected[criterion] = shares
    moment = measure_coverage(model.network, weights_of(model), by_text(model), data).moments[0]
    for criterion, shares in expected.items():
        found = moment.shares[criterion][0]  # type: ignore[index]
        # Float32 sums in another order.
        assert (found.mean, found.std) == (pytest.approx(np.mean(shares), 1e-4), pytest.approx(np.std(shares), 1e-3))


def test_before_any_step_static_and_dynamic_masks_are_the_same_and_none_beats_the_rows_own(model: LoadedModel) -> None:
    moment = measure_coverage(model.network, weights_of(model), by_text(model), data_of()).moments[0]
    assert moment.shares["task_static"] == moment.shares["task_dynamic"]
    assert moment.overlaps["task_static", "task_dynamic"][0] == 1
    assert all(moment.shares[criterion][0].mean <= moment.shares["in_sample"][0].mean for criterion in CRITERIA)


def test_fine_tuning_moves_the_linear_weights_alone_and_lowers_the_loss(model: LoadedModel) -> None:
    before = {name: parameter.clone() for name, parameter in model.parameters.items()}
    data = data_of()
    coverage = measure_coverage(
        model.network, weights_of(model), by_text(model),
        CoverageData(data.selecting, data.measuring, data.measuring),
        moments=(0, 4, 8), tuning=FirstOrderSettings(lr=1e-3, batch=4),
    )  # fmt: skip
    moved = {name for name, parameter in model.parameters.items() if not torch.equal(parameter, before[name])}
    assert moved == set(model.outline.linear_names)
    assert [moment.step for moment in coverage.moments] == [0, 4, 8]
    assert coverage.moments[2].loss < coverage.moments[1].loss < coverage.moments[0].loss
    assert coverage.moments[2].overlaps["task_static", "task_dynamic"][0] < 1


def test_one_step_of_sgd_is_the_mean_gradient_of_the_batch(model: LoadedModel) -> None:
    data, name = data_of(), model.outline.linear_names[0]
    before = model.parameters[name].detach().clone()
    model.parameters[name].requires_grad_(True)
    rows = data.training
    losses = [
        cross_entropy(model.network(input_ids=tokens[None].long()).logits[0, 8:10], tokens[9:11].long())
        for tokens in rows.tokens
    ]
    (gradient,) = torch.autograd.grad(torch.stack(losses).mean(), model.parameters[name])
    model.parameters[name].requires_grad_(False)
    tuning = FirstOrderSettings(optimizer="sgd", lr=0.5, batch=99)
    measure_coverage(model.network, weights_of(model), by_text(model), data, moments=(0, 1), tuning=tuning)
    torch.testing.assert_close(model.parameters[name].detach(), before - 0.5 * gradient)


def test_a_learning_rate_that_diverges_is_said(model: LoadedModel) -> None:
    tuning = FirstOrderSettings(optimizer="sgd", lr=1e38)
    with pytest.raises(Diverged, match=r"--lr 1e\+37"):
        measure_coverage(model.network, weights_of(model), by_text(model), data_of(), moments=(0, 9), tuning=tuning)


def test_every_backward_pass_is_counted(model: LoadedModel) -> None:
    passes: list[None] = []
    tuning = FirstOrderSettings(batch=5)
    measure_coverage(
        model.network, weights_of(model), by_text(model), data_of(), moments=(0, 2), tuning=tuning,
        after_pass=lambda: passes.append(None),
    )  # fmt: skip
    # Twice 4 + 4 rows, two steps of 5 rows.
    assert len(passes) == count_passes(data_of(), (0, 2), tuning) == 2 * 8 + 2 * 5


@pytest.mark.parametrize(
    ("fields", "moments"),
    [({}, [0]), ({"steps": 5}, [0, 1, 2, 3, 4, 5]), ({"steps": 100}, [*range(0, 101, 10)]),
     ({"steps": 7, "every": 3}, [0, 3, 6, 7]), ({"steps": 2, "every": 9}, [0, 2])],
)  # fmt: skip
def test_the_first_and_the_last_step_are_always_looked_at(fields: dict[str, int], moments: list[int]) -> None:
    task = CalibrationSpec(text="rows.jsonl", task="rows")
    assert CoverageRequest.model_validate({"model": "m", "task": task, **fields}).moments == moments


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """A coverage command on a tiny model, a text and ten rows of our own."""
    build_checkpoint(tmp_path / "Tiny")
    rows = [{"text": f"row {number} <b>", "label": "yes" if number % 3 else "no"} for number in range(10)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = write_text(tmp_path / "text.jsonl")
    return [
        "report", "coverage", str(tmp_path / "Tiny"), "--task-data", str(tmp_path / "rows.jsonl"), "--text", str(text),
        "--sequences", "2", "--tokens", "48", "--quiet",
    ]  # fmt: skip


def test_the_command_prints_a_table_of_every_criterion(command: list[str], capsys: pytest.CaptureFixture[Any]) -> None:
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["step", "0,", "loss"]
    assert len(lines) == 1 + len(CRITERIA)
    assert all(line.count("%") == 3 for line in lines[1:])


def test_the_command_writes_page_figure_and_data(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[Any]
) -> None:
    output = tmp_path / "report"
    assert main([*command, "--steps", "2", "--every", "1", "--batch", "2", "--output", str(output), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads((output / "coverage.json").read_text())
    assert [moment["step"] for moment in document["moments"]] == [0, 1, 2]
    assert (document["task"], document["selecting_rows"], document["measuring_rows"]) == ("rows.jsonl", 5, 5)
    assert document["fine_tuning"] == {"optimizer": "adam", "lr": 1e-05, "batch": 2, "rows": 10, "steps": 2}
    assert (output / "coverage.svg").read_text().startswith("<?xml")
    page = (output / "coverage.html").read_text()
    assert page.count("<svg") == 1 + 3
    assert re.findall(r'(?:src|href)="(?!#)', page) == []
    assert str(tmp_path) not in page + json.dumps(document)


class StoppingLauncher(LocalLauncher):
    """Remembers the work it was given; stops after so many sequences."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.works: list[FisherWork] = []
        self.told: list[int] = []
        self._stop_after = stop_after

    def estimate(self, work: FisherWork, totals: FisherTotals, *, after_sequence: Callable[[int], None]) -> None:
        self.works.append(work)

        def tell(done: int) -> None:
            after_sequence(done)
            self.told.append(done)
            if done == self._stop_after:
                raise Interrupted("stopped by the test")

        super().estimate(work, totals, after_sequence=tell)


def measure(tmp_path: Path, launcher: LocalLauncher) -> MeasuredCoverage:
    request = CoverageRequest(
        model=str(tmp_path / "Tiny"),
        calibration=CalibrationSpec(text=str(tmp_path / "text.jsonl"), sequences=4, tokens_per_sequence=48),
        task=CalibrationSpec(text=str(tmp_path / "rows.jsonl"), task="rows", tokens_per_sequence=48),
    )
    return run_coverage(
        request,
        SourcePolicy(allow_any_local=True),
        SilentProgress(),
        workspace=tmp_path / "work",
        means=Means(launcher, device="cpu"),
    )


@pytest.mark.usefixtures("command")
def test_the_texts_pass_is_the_launchers_and_goes_on_where_it_was(tmp_path: Path) -> None:
    whole = StoppingLauncher()
    expected = measure(tmp_path, whole)
    assert [tokens_digest(work.calibration) for work in whole.works] == [expected.about["text_digest"]]
    assert not (tmp_path / "work").exists()
    with pytest.raises(Interrupted):
        measure(tmp_path, StoppingLauncher(stop_after=3))
    resumed = StoppingLauncher()
    assert measure(tmp_path, resumed) == expected
    assert resumed.told == [2, 3, 4]  # shards of one sequence: two were added, the third was not


def test_a_budget_that_holds_nothing_is_refused_and_a_second_report_waits_its_turn(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[Any]
) -> None:
    assert main([*command, "--max-host-bytes", "1MiB"]) == ResourceError.exit_code
    assert "no way to prepare this model fits" in capsys.readouterr().err
    with exclusive(tmp_path / "report" / ".coverage.lock"):
        assert main([*command, "--output", str(tmp_path / "report")]) == Conflict.exit_code
    assert "another report works in" in capsys.readouterr().err
    assert main([*command, "--output", str(tmp_path / "report")]) == 0
    assert not (tmp_path / "report" / ".coverage").exists()


def test_without_steps_there_is_one_picture(command: list[str], tmp_path: Path) -> None:
    assert main([*command, "--output", str(tmp_path / "report")]) == 0
    page = (tmp_path / "report" / "coverage.html").read_text()
    assert page.count("<svg") == 1
    assert "Before any fine-tuning" in page
    assert "random" in (tmp_path / "report" / "coverage.svg").read_text()


def test_rows_that_are_not_there_name_the_option(command: list[str], capsys: pytest.CaptureFixture[Any]) -> None:
    assert main([*command, "--task-data", "absent.jsonl"]) == 2
    assert "--task-data 'absent.jsonl' is no file of rows" in capsys.readouterr().err


def test_c4s_mask_covers_more_of_sst2_than_chance_and_less_than_sst2s_own(
    real_data: Path, capsys: pytest.CaptureFixture[Any]
) -> None:
    command = [
        "report", "coverage", str(real_data / "models" / "picollama-sentiment"), "--task", "sst-2",
        "--task-data", str(real_data / "tasks"), "--text", str(real_data / "text" / "c4" / "c4-en-1000.jsonl"),
        "--sequences", "6", "--rows", "16", "--tokens", "64", "--quiet", "--json",
    ]  # fmt: skip
    assert main(command) == 0
    shares = json.loads(capsys.readouterr().out)["moments"][0]["shares"]
    for index in range(3):
        by = {criterion: shares[criterion][index]["mean"] for criterion in CRITERIA}
        # The gaps are factors of 2 and more, also with so few sequences.
        assert by["random"] < by["text_static"] < by["task_static"] < by["in_sample"]


def test_the_same_command_gives_the_same_figures(command: list[str], capsys: pytest.CaptureFixture[Any]) -> None:
    outputs = set()
    for _ in range(2):
        assert main([*command, "--steps", "1", "--json"]) == 0
        outputs.add(capsys.readouterr().out)
    assert len(outputs) == 1


def test_too_few_rows_name_the_option(command: list[str], capsys: pytest.CaptureFixture[Any]) -> None:
    assert main([*command, "--rows", "12"]) == DataError.exit_code
    assert "--rows 10" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "named"),
    [(("--rows", "2"), "--rows 2"), (("--steps", "-1"), "--steps -1"), (("--lr", "nan"), "--lr NaN"),
     (("--task", "MNLI"), '--task "MNLI"'), (("--batch", "0"), "--batch 0"), (("--tokens", "2"), "--tokens 2")],
)  # fmt: skip
def test_options_out_of_range_are_named(
    command: list[str], options: tuple[str, str], named: str, capsys: pytest.CaptureFixture[Any]
) -> None:
    assert main([*command, *options]) == 2
    assert named in capsys.readouterr().err
