"""From options to the examples of a run."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from device_client.commands.task_arguments import add_row_arguments, add_split_arguments, data_options
from device_client.tasks.task_data import DataOptions, load_task_data, read_task_records
from shared.errors import DataError, InvalidRequest


class LetterTokenizer:
    """One token per letter."""

    bos_ids = [1]  # noqa: RUF012
    eos_ids = [2]  # noqa: RUF012
    context_length = 4096

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))

    def as_text(self, text: str) -> str:
        return text

    def text_of(self, token: int) -> str | None:
        return chr(token)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        raise NotImplementedError


def write_rows(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def labelled(count: int, *labels: str) -> list[dict[str, object]]:
    return [{"text": f"t{i}", "label": labels[i % len(labels)]} for i in range(count)]


def test_validation_rows_are_held_out_of_the_training_rows(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "a.jsonl", labelled(20, "x", "y"))
    found = load_task_data(DataOptions(data=data, validation_share=0.25), LetterTokenizer(), "llama")
    assert (len(found.training), len(found.validation), len(found.test)) == (15, 5, 0)
    assert not {e.place for e in found.training} & {e.place for e in found.validation}


def test_a_validation_file_leaves_all_training_rows(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "a.jsonl", labelled(6, "x", "y"))
    other = write_rows(tmp_path / "b.jsonl", labelled(4, "x", "y"))
    options = DataOptions(data=data, validation=other, test=other, train_rows=5, test_rows=3)
    records = read_task_records(options)
    assert (len(records.training), len(records.validation), len(records.test)) == (5, 4, 3)
    assert set(records.digests) == {"training", "validation", "test"}


def test_a_label_unseen_in_training_is_named_with_its_line(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "a.jsonl", labelled(6, "x", "y"))
    other = write_rows(tmp_path / "b.jsonl", labelled(4, "x", "z"))
    with pytest.raises(DataError, match=r"b.jsonl line 2: its label is none") as caught:
        load_task_data(DataOptions(data=data, validation=other), LetterTokenizer(), "llama")
    assert caught.value.needed == "one of the 2 labels of the training rows"


def test_a_named_task_follows_the_family_unless_told_otherwise(real_data: Path) -> None:
    common = {"task": "sst-2", "data_dir": real_data / "tasks", "train_rows": 3, "validation_rows": 2, "test_rows": 2}
    by_family = load_task_data(DataOptions(**common), LetterTokenizer(), "llama")
    assert by_family.prompts.renderer.as_json() == {"task": "SST-2", "prompt_style": "llama"}
    asked = load_task_data(DataOptions(**common, prompt_style="opt"), LetterTokenizer(), "llama")
    assert "".join(map(chr, asked.test[0].prompt[-7:])) == " It was"
    assert (len(asked.training), len(asked.validation), len(asked.test)) == (3, 2, 2)


def asked(*words: str) -> DataOptions:
    parser = argparse.ArgumentParser()
    add_row_arguments(parser)
    add_split_arguments(parser)
    return data_options(parser.parse_args(words), seed=0)


@pytest.mark.parametrize(
    ("task", "sizes"),
    [("SST-2", (1000, 500, 872)), ("CB", (150, 100, 56)), ("COPA", (268, 100, 100)), ("RTE", (16, 16, 32))],
)
def test_a_named_task_has_as_many_rows_as_appendix_c4_as_far_as_its_files_allow(
    real_data: Path, task: str, sizes: tuple[int, int, int]
) -> None:
    records = read_task_records(asked("--task", task, "--data-dir", str(real_data / "tasks")))
    assert (len(records.training), len(records.validation), len(records.test)) == sizes
    assert not {row.place for row in records.training} & {row.place for row in records.validation}


def test_a_validation_share_that_was_asked_for_is_kept(real_data: Path, tmp_path: Path) -> None:
    words = ("--task", "CB", "--data-dir", str(real_data / "tasks"), "--validation-share", "0.1")
    assert len(read_task_records(asked(*words)).validation) == 25
    data = write_rows(tmp_path / "a.jsonl", labelled(20, "x", "y"))
    assert len(read_task_records(asked("--data", str(data))).validation) == 4


@pytest.mark.parametrize("options", [DataOptions(), DataOptions(data=Path("a.jsonl"), task="RTE")])
def test_exactly_one_source_of_rows(options: DataOptions) -> None:
    with pytest.raises(InvalidRequest, match="exactly one"):
        read_task_records(options)


def test_a_named_task_needs_its_folder() -> None:
    with pytest.raises(InvalidRequest, match="--data-dir"):
        read_task_records(DataOptions(task="RTE"))


def test_completions_need_no_labels(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "a.jsonl", [{"prompt": f"p{i}", "completion": " c"} for i in range(4)])
    found = load_task_data(DataOptions(data=data, validation_share=0.5), LetterTokenizer(), "llama")
    assert all(example.candidates == ((32, 99, 2),) for example in found.training)


@pytest.mark.parametrize("seed", range(5))
def test_a_rare_label_is_learnt_and_can_be_chosen(tmp_path: Path, seed: int) -> None:
    rows = [{"text": f"t{i}", "label": "rare" if i == 3 else "xy"[i % 2]} for i in range(10)]
    data = write_rows(tmp_path / "a.jsonl", rows)
    found = load_task_data(DataOptions(data=data, seed=seed), LetterTokenizer(), "llama")
    assert sum(example.right == 0 for example in found.training) == 1  # rare, x, y in their order
    assert {len(example.candidates) for example in found.validation} == {3}


def test_the_labels_are_those_of_the_whole_file_whatever_was_drawn(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "a.jsonl", labelled(40, "x", "y", "z"))
    found = load_task_data(DataOptions(data=data, train_rows=2), LetterTokenizer(), "llama")
    assert {len(example.candidates) for example in [*found.training, *found.validation]} == {3}


def test_labels_alike_but_for_case_and_blanks_are_warned_of(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "a.jsonl", labelled(30, "Good", "good ", "GOOD", "bad", "very  bad", "very bad"))
    (warning,) = load_task_data(DataOptions(data=data), LetterTokenizer(), "llama").warnings
    assert "'GOOD' = 'Good' = 'good'; 'very  bad' = 'very bad'" in warning


def test_what_is_cut_is_counted(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"prompt": "q" * 30, "completion": "a" * 4},
        {"prompt": "q", "completion": "a" * 40},
    ]
    data = write_rows(tmp_path / "a.jsonl", rows)
    options = DataOptions(data=data, validation=data, max_tokens=20)
    prompts, answers = load_task_data(options, LetterTokenizer(), "llama").warnings
    assert prompts.startswith("2 of 4 prompts are longer than the longest sequence: cut at their beginning")
    assert answers.startswith("2 of 4 answers are longer than the longest sequence: they lose their end")
