"""The sweep of quantisers: equal to preparations one by one, resumable, and honest about what is stored."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cloud_service.memory_budget import MemoryBudget
from cloud_service.pipeline.opening.planned_model import Means
from cloud_service.pipeline.prepare import prepare
from cloud_service.progress import ProgressSink, SilentProgress
from cloud_service.sources import SourcePolicy
from cloud_service.studies.quantizer_sweep import Combination, Sweep, SweepRequest, run_sweep
from cloud_service.studies.quantizer_sweep_report import (
    smallest_close_to_16bit,
    sweep_document,
    sweep_page,
    sweep_svg,
    sweep_table,
)
from shared.api import PrepareRequest, Stage
from shared.bundle.layout import ImageLayout
from shared.errors import Conflict, Interrupted, ResourceError
from shared.file_lock import exclusive

MakeCheckpoint = Callable[..., Path]
POLICY = SourcePolicy(allow_any_local=True)
CPU = Means(device="cpu")
SMALL: dict[str, Any] = {"sparsity": 0.01, "evaluation": {"documents": 3}}


class Notes(SilentProgress):
    """Keeps the notes and what the calibration reports; interrupts at the n-th quantised combination."""

    def __init__(self, interrupt_at_combination: int | None = None) -> None:
        self.notes: list[str] = []
        self.calibrated: list[int] = []
        self._stage: Stage | None = None
        self._quantized = 0
        self._interrupt_at = interrupt_at_combination

    def stage(self, stage: Stage, *, total: int = 0, unit: str = "") -> None:
        self._stage = stage
        self._quantized += stage == Stage.QUANTIZING
        if stage == Stage.QUANTIZING and self._quantized == self._interrupt_at:
            raise Interrupted("stopped by the test")

    def advance(self, done: int) -> None:
        if self._stage == Stage.CALIBRATING:
            self.calibrated.append(done)

    def note(self, message: str) -> None:
        self.notes.append(message)


def request_of(model: Path, text: Path, **changes: Any) -> SweepRequest:
    calibration = {"text": str(text), "sequences": 8, "tokens_per_sequence": 24}
    settings = {"model": str(model), "calibration": calibration, **SMALL, "methods": ["lut", "rtn"], "bits": [3, 4]}
    return SweepRequest.model_validate(settings | changes)


def run(request: SweepRequest, folder: Path, progress: ProgressSink | None = None) -> Sweep:
    return run_sweep(request, folder=folder, policy=POLICY, progress=progress or SilentProgress(), means=CPU)


def without_seconds(sweep: Sweep) -> list[dict[str, Any]]:
    return [dataclasses.asdict(one) | {"seconds": 0.0} for one in sweep.combinations]


def test_a_combination_is_what_a_preparation_reports(
    make_checkpoint: MakeCheckpoint, text: Path, tmp_path: Path
) -> None:
    request = request_of(make_checkpoint(), text, methods=["uniform"], bits=[4], group_size=32)
    sweep = run(request, tmp_path / "sweep")
    fields = request.model_dump(include={"model", "sparsity", "calibration", "evaluation"})
    fields |= {"quantizer": {"method": "uniform", "group_size": 32}, "embedding_bits": 16}
    made = prepare(
        PrepareRequest.model_validate(fields),
        workspace=tmp_path / "work",
        layout=ImageLayout.create(tmp_path / "store"),
        progress=SilentProgress(),
        sources=POLICY,
        means=Means(device="cpu"),
    )
    expected, found = made.report["perplexity"], sweep.combinations[0]
    assert sweep.perplexity_16bit == pytest.approx(expected["16bit"])
    assert found.perplexity == pytest.approx(expected["bundle"])
    assert found.perplexity_dense_only == pytest.approx(expected["dense_only"])
    assert sweep.about["split_half_overlap"] == pytest.approx(made.report["mask"]["split_half_overlap"])


def test_the_stored_bits_worked_by_hand(make_checkpoint: MakeCheckpoint, text: Path, tmp_path: Path) -> None:
    sweep = run(request_of(make_checkpoint(), text, bits=[4], group_size=16), tmp_path)
    lut, rtn = sweep.combinations
    # One block: q and o 32×32, k and v 16×32, gate and up 44×32, down 32×44; all 4-bit codes fill whole bytes.
    weights = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 44 * 32
    rows = 2 * 32 + 2 * 16 + 2 * 44 + 32
    sensitive = 2 * 10 + 2 * 5 + 3 * 14
    groups = (rows - 32) * 2 + 32 * 3  # 32 columns make 2 groups of 16; 44 make 3, the last of 12
    assert lut.bits_dense == pytest.approx(4 + 8 * 16 * 2 * rows / weights)
    assert rtn.bits_dense == pytest.approx(4 + 8 * 2 * 2 * groups / weights)
    for one in (lut, rtn):
        assert one.bits_stored - one.bits_dense == pytest.approx(8 * 10 * sensitive / weights)
    assert (lut.group_size, rtn.group_size) == (None, 16)


def test_more_bits_mean_less_error_and_codebooks_beat_rounding(
    make_checkpoint: MakeCheckpoint, text: Path, tmp_path: Path
) -> None:
    sweep = run(request_of(make_checkpoint(), text), tmp_path)
    errors = {(one.method, one.bits): one.weighted_error for one in sweep.combinations}
    assert list(errors) == [("lut", 3), ("lut", 4), ("rtn", 3), ("rtn", 4)]
    assert errors["lut", 4] < errors["lut", 3] < errors["rtn", 3]
    assert errors["lut", 4] < errors["rtn", 4] < errors["rtn", 3]


def test_an_interrupted_sweep_goes_on_from_its_finished_combinations(
    make_checkpoint: MakeCheckpoint, text: Path, tmp_path: Path
) -> None:
    request = request_of(make_checkpoint(), text)
    whole = run(request, tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(request, tmp_path / "cut", Notes(interrupt_at_combination=3))
    assert {path.stem for path in (tmp_path / "cut" / ".combinations").glob("*-*")} == {"lut-3-gptq", "lut-4-gptq"}
    again = Notes()
    resumed = run(request, tmp_path / "cut", again)
    assert [note for note in again.notes if note.startswith("combination")] == [
        "combination 1 of 2: rtn-3-g64-gptq",
        "combination 2 of 2: rtn-4-g64-gptq",
    ]
    assert again.calibrated == [8]  # all at once: the totals were there
    assert without_seconds(resumed) == without_seconds(whole)
    assert resumed.perplexity_16bit == whole.perplexity_16bit
    assert not (tmp_path / "cut" / ".workspace").exists()


def test_a_finished_sweep_measures_nothing_again_and_a_longer_list_only_what_is_new(
    make_checkpoint: MakeCheckpoint, text: Path, tmp_path: Path
) -> None:
    model = make_checkpoint()
    first = run(request_of(model, text), tmp_path)
    silent = Notes()
    assert run(request_of(model, text), tmp_path, silent) == first
    assert silent.calibrated == []
    assert not any(note.startswith("plan") for note in silent.notes)
    longer = Notes()
    both = run(request_of(model, text, bits=[4, 2]), tmp_path, longer)
    assert [(one.method, one.bits) for one in both.combinations] == [("lut", 4), ("lut", 2), ("rtn", 4), ("rtn", 2)]
    combinations = [note.split(": ")[1] for note in longer.notes if note.startswith("combination")]
    assert combinations == ["lut-2-gptq", "rtn-2-g64-gptq"]


def test_combinations_of_another_input_are_not_taken_over(
    make_checkpoint: MakeCheckpoint, text: Path, tmp_path: Path
) -> None:
    model = make_checkpoint()
    first = run(request_of(model, text, methods=["rtn"]), tmp_path)
    other = run(request_of(model, text, methods=["rtn"], sparsity=0.2), tmp_path)
    assert all(a.perplexity != b.perplexity for a, b in zip(first.combinations, other.combinations, strict=True))


def test_a_folder_serves_one_sweep_at_a_time(make_checkpoint: MakeCheckpoint, text: Path, tmp_path: Path) -> None:
    with exclusive(tmp_path / ".sweep.lock"), pytest.raises(Conflict, match="another sweep"):
        run(request_of(make_checkpoint(), text), tmp_path)


@pytest.mark.parametrize(
    ("changes", "field", "reason"),
    [
        ({"bits": [5]}, ("bits", 0), "2, 3, 4 or 8"),
        ({"bits": []}, ("bits",), "at least 1"),
        ({"methods": ["awq"]}, ("methods", 0), "'lut', 'shared', 'uniform' or 'rtn'"),
        ({"group_size": 4}, ("group_size",), "greater than or equal to 8"),
        ({"compensations": ["obs"]}, ("compensations", 0), "'none', 'gptq' or 'refit'"),
        ({"evaluation": {"documents": 0}}, ("evaluation",), "at least 1"),
    ],
)
def test_a_wrong_value_is_named(changes: dict[str, Any], field: tuple[Any, ...], reason: str) -> None:
    with pytest.raises(ValidationError) as caught:
        request_of(Path("model"), Path("text.txt"), **changes)
    error = caught.value.errors()[0]
    assert error["loc"] == field
    assert reason in error["msg"]


def test_a_value_named_twice_is_swept_once() -> None:
    request = request_of(Path("model"), Path("text.txt"), methods=["rtn", "lut", "rtn"], bits=[4, 4])
    assert [(one.method, one.bits) for one in request.quantizers] == [("rtn", 4), ("lut", 4)]


def combination(method: str, bits: int, stored: float, perplexity: float, **changes: Any) -> Combination:
    fields = {"group_size": None, "compensation": "none", "bits_dense": stored - 0.08, "weighted_error": 0.01}
    fields |= {"perplexity_dense_only": perplexity + 1, "seconds": 75.0}
    return Combination(method, bits, bits_stored=stored, perplexity=perplexity, **(fields | changes))


def example_sweep() -> Sweep:
    about = {
        "model": "example/<model>", "revision": None, "sparsity": 0.001, "scope": "per_tensor",
        "split_half_overlap": 0.8, "calibration_text": "c4", "calibration_sequences": 128,
        "calibration_tokens_per_sequence": 512, "calibration_seed": 0, "calibration_digest": "sha256:" + "0" * 64,
        "evaluation_text": "c4", "evaluation_documents": 200, "evaluation_dtype": "float16",
    }  # fmt: skip
    return Sweep(
        about,
        10.0,
        (
            combination("lut", 3, 3.2, 10.6),
            combination("lut", 4, 4.3, 10.2),
            combination("uniform", 2, 2.6, 90.0, group_size=64, compensation="gptq"),
            combination("uniform", 4, 4.6, 10.1, group_size=64, compensation="gptq"),
        ),
    )


def test_the_table_has_a_line_per_combination_and_one_for_16_bits() -> None:
    lines = sweep_table(example_sweep()).splitlines()
    assert len(lines) == 6
    assert lines[2].split() == [
        "lut", "4", "bit", "4.300", "10.200", "+2.00", "%", "11.200", "1.000", "%", "1", "min", "15", "s",
    ]  # fmt: skip
    assert lines[3].startswith("uniform g64 gptq 2 bit")
    assert lines[-1] == "16 bit: perplexity 10.000"


def test_the_smallest_within_five_percent_is_recommended() -> None:
    smallest = smallest_close_to_16bit(example_sweep())
    assert smallest is not None
    assert (smallest.method, smallest.bits) == ("lut", 4)
    assert smallest_close_to_16bit(example_sweep(), share=0.001) is None
    without_lut = dataclasses.replace(example_sweep(), combinations=example_sweep().combinations[2:])
    assert "<strong>uniform g64 gptq, 4 bit</strong>" in sweep_page(without_lut).decode()


def test_the_plot_has_a_line_per_method_and_is_the_same_each_time() -> None:
    svg = sweep_svg(example_sweep())
    assert svg == sweep_svg(example_sweep())
    for label in (b">lut<", b">uniform g64 gptq<", b">16 bit<", b">without sensitive<"):
        assert label in svg
    assert b"var(--" not in svg


def test_the_page_is_escaped_and_says_what_the_document_says() -> None:
    page = sweep_page(example_sweep()).decode()
    assert "example/&lt;model&gt;" in page
    assert page.count("<svg") == 2  # 90 is far from 10: a close-up as well
    assert page.count('<th scope="row">') == len(sweep_document(example_sweep())["combinations"])


def test_a_sweep_without_a_good_combination_says_so() -> None:
    poor = dataclasses.replace(example_sweep(), combinations=(combination("rtn", 2, 2.6, 19.0),))
    page = sweep_page(poor).decode()
    assert "No combination comes within" in page
    assert page.count("<svg") == 1


def test_the_scratch_of_a_killed_combination_is_not_used(
    make_checkpoint: MakeCheckpoint, text: Path, tmp_path: Path
) -> None:
    request = request_of(make_checkpoint(), text, bits=[4])
    with pytest.raises(Interrupted):
        run(request, tmp_path, Notes(interrupt_at_combination=2))
    stale = tmp_path / ".workspace" / "combination"
    stale.mkdir(exist_ok=True)
    (stale / "block-00000.json").write_text("damaged")
    run(request, tmp_path)
    assert len(run(request, tmp_path).combinations) == 2


def test_compensation_changes_the_codes_and_not_their_size(
    make_checkpoint: MakeCheckpoint, text: Path, tmp_path: Path
) -> None:
    request = request_of(make_checkpoint(), text, methods=["rtn"], bits=[3], compensations=["gptq", "none"])
    compensated, plain = run(request, tmp_path).combinations
    assert (compensated.compensation, plain.compensation) == ("gptq", "none")
    assert compensated.bits_stored == plain.bits_stored
    # Rounding to the nearest has the least error weight by weight; compensation pays there to gain in the outputs.
    assert compensated.weighted_error > plain.weighted_error


def test_compensation_starts_from_the_checkpoint_whatever_was_measured_before(
    make_checkpoint: MakeCheckpoint, text: Path, tmp_path: Path
) -> None:
    model = make_checkpoint()
    alone = run(request_of(model, text, methods=["rtn"], bits=[3], compensations=["gptq"]), tmp_path / "alone")
    after = run(request_of(model, text, methods=["rtn"], bits=[2, 3], compensations=["gptq"]), tmp_path / "after")
    assert without_seconds(after)[1] == without_seconds(alone)[0]


def test_a_sweep_that_no_budget_holds_is_refused_before_anything_is_computed(
    make_checkpoint: MakeCheckpoint, text: Path, tmp_path: Path
) -> None:
    progress = Notes()
    with pytest.raises(ResourceError, match=r"main memory to use: 1000 B .*no way to prepare"):
        run_sweep(
            request_of(make_checkpoint(), text),
            folder=tmp_path,
            policy=POLICY,
            progress=progress,
            means=Means(budget=MemoryBudget(max_host_bytes=1000), device="cpu"),
        )
    assert progress.calibrated == []


def test_memory_is_planned_for_compensation_where_one_combination_compensates() -> None:
    settings = {"methods": ["rtn"], "bits": [2]}
    both = request_of(Path("model"), Path("text.txt"), **settings, compensations=["none", "gptq"])
    plain = request_of(Path("model"), Path("text.txt"), **settings, compensations=["none"])
    assert (both.largest_quantizer.compensation, plain.largest_quantizer.compensation) == ("gptq", "none")
