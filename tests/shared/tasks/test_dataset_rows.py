"""Rows from files: what is read, and which line is blamed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from shared.errors import DataError
from shared.tasks.datasets import Record, digest_of_rows, draw_rows, hold_out, read_records


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_json_line_is_a_row_and_blank_lines_are_passed_over(tmp_path: Path) -> None:
    path = write(tmp_path, "rows.jsonl", '{"text": "a", "label": 1}\n\n{"text": "b", "label": 0}\n')
    records = read_records(path)
    assert [(dict(record.fields), record.place) for record in records] == [
        ({"text": "a", "label": 1}, "rows.jsonl line 1"),
        ({"text": "b", "label": 0}, "rows.jsonl line 3"),
    ]


def test_a_csv_field_may_hold_commas_quotes_and_newlines(tmp_path: Path) -> None:
    path = write(tmp_path, "rows.csv", 'text,label\n"a, ""b""\nc",x\nd,y\n')
    first, second = read_records(path)
    assert dict(first.fields) == {"text": 'a, "b"\nc', "label": "x"}
    assert second.place == "rows.csv line 4"


def test_a_quotation_mark_in_a_tsv_is_a_letter(tmp_path: Path) -> None:
    path = write(tmp_path, "train.tsv", 'sentence\tlabel\na "b\t1\n')
    assert dict(read_records(path)[0].fields) == {"sentence": 'a "b', "label": "1"}


@pytest.mark.parametrize(
    ("name", "text", "place", "fault"),
    [
        ("a.jsonl", '{"text": "secret"}\n{"text": "secret",}\n', "a.jsonl line 2", "column"),
        ("a.jsonl", '["secret"]\n', "a.jsonl line 1", "a list"),
        ("a.jsonl", "[" * 100_000 + "\n", "a.jsonl line 1", "nested"),
        ("a.csv", "text,label\nsecret\n", "a.csv line 2", "columns"),
        ("a.csv", "text,label\nsecret,x,y\n", "a.csv line 2", "columns"),
        ("a.csv", 'text,label\n"secret"s,x\n', "a.csv line 2", "expected"),
        ("a.jsonl", "\n  \n", "a.jsonl", "no rows"),
        ("a.csv", "text,label\n", "a.csv", "no rows"),
        ("a.jsonl", "", "a.jsonl", "no rows"),
        ("a.parquet", "secret", "a.parquet", ".parquet"),
    ],
)
def test_an_unusable_file_names_the_line_and_never_shows_the_row(
    tmp_path: Path, name: str, text: str, place: str, fault: str
) -> None:
    with pytest.raises(DataError) as caught:
        read_records(write(tmp_path, name, text))
    assert place in str(caught.value)
    assert fault in str(caught.value)
    assert "secret" not in str(caught.value)
    assert caught.value.exit_code == 9


def test_a_table_without_a_header_does_not_show_its_first_row(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 2: not as many columns") as caught:
        read_records(write(tmp_path, "a.csv", "secret text,1\na,b,c\n"))
    assert caught.value.needed == "2 columns, as the first line of a.csv has"
    assert "secret" not in str(caught.value)


def test_a_missing_file_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file"):
        read_records(tmp_path / "absent.jsonl")


def test_a_folder_is_no_file_of_rows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        read_records(tmp_path / "a.jsonl")


def test_bytes_that_are_no_utf8_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "\xff"}')
    with pytest.raises(DataError, match="byte 10 is not UTF-8"):
        read_records(path)


@pytest.mark.parametrize(
    ("row", "fault"),
    [('{"label": 1}', "is missing"), ('{"text": "", "label": 1}', "is empty"), ('{"text": " \\n\\u00a0"}', "is empty")],
)
def test_a_row_without_a_field_names_line_and_field(tmp_path: Path, row: str, fault: str) -> None:
    record = read_records(write(tmp_path, "a.jsonl", row))[0]
    with pytest.raises(DataError, match=f"a.jsonl line 1: 'text' {fault}"):
        record.text("text")


def test_a_field_of_another_type_is_named_by_its_kind(tmp_path: Path) -> None:
    record = read_records(write(tmp_path, "a.jsonl", '{"text": [1]}'))[0]
    with pytest.raises(DataError, match="'text' is a list"):
        record.text("text")


def test_half_of_a_surrogate_pair_is_refused_by_file_and_line(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"text": "whole \\ud83d\\ude00"}\n{"text": "half \\ud83d"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl line 2: a string holds half of a surrogate pair"):
        read_records(path)


def test_rows_held_out_and_the_rest_are_the_file(tmp_path: Path) -> None:
    records = read_records(write(tmp_path, "a.jsonl", "".join(f'{{"text": "{i}"}}\n' for i in range(10))))
    rest, held = hold_out(records, 0.3, seed=5)
    assert (len(rest), len(held)) == (7, 3)
    assert sorted(record.fields["text"] for record in [*rest, *held]) == [str(i) for i in range(10)]
    assert hold_out(records, 0.3, seed=5) == (rest, held)
    assert hold_out(records, 0.3, seed=6) != (rest, held)


def test_a_share_that_leaves_no_row_is_refused(tmp_path: Path) -> None:
    records = read_records(write(tmp_path, "a.jsonl", '{"text": "a"}\n{"text": "b"}'))
    with pytest.raises(DataError, match="is 0 rows"):
        hold_out(records, 0.2, seed=0)


def labelled(tmp_path: Path, labels: str) -> list[Record]:
    return read_records(
        write(tmp_path, "a.jsonl", "".join(f'{{"text": "t", "label": "{label}"}}\n' for label in labels))
    )


@pytest.mark.parametrize(
    ("labels", "share", "held"),
    [
        ("ab" * 10, 0.2, {"a": 2, "b": 2}),
        ("a" * 15 + "b" * 5, 0.2, {"a": 3, "b": 1}),
        ("abababaabr", 0.2, {"a": 1, "b": 1}),  # the only row of r stays
        ("aaaab", 0.2, {"a": 1}),
        ("aabb", 0.5, {"a": 1, "b": 1}),
        ("aabc", 0.5, {"a": 1}),  # fewer than two: one row of each label stays
    ],
)
@pytest.mark.parametrize("seed", range(4))
def test_each_label_is_held_out_by_its_share_and_keeps_a_row(
    tmp_path: Path, labels: str, share: float, held: dict[str, int], seed: int
) -> None:
    records = labelled(tmp_path, labels)
    rest, validation = hold_out(records, share, seed, strata=list(labels))
    assert Counter(row.fields["label"] for row in validation) == held
    assert {row.fields["label"] for row in rest} == set(labels)
    assert len(rest) + len(validation) == len(records)


def test_labels_that_all_occur_once_leave_nothing_to_hold_out(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="each label keeps a row for training"):
        hold_out(labelled(tmp_path, "abcdef"), 0.5, seed=0, strata=list("abcdef"))


def test_drawn_rows_are_distinct_and_follow_the_seed(tmp_path: Path) -> None:
    records = read_records(write(tmp_path, "a.jsonl", "".join(f'{{"text": "{i}"}}\n' for i in range(50))))
    drawn = draw_rows(records, 20, seed=1)
    assert len({record.place for record in drawn}) == 20
    assert draw_rows(records, 20, seed=1) == drawn
    assert draw_rows(records, 20, seed=2) != drawn
    assert draw_rows(records, None, seed=1) == records
    assert draw_rows(records, 99, seed=1) == records


def test_the_digest_follows_content_not_the_file_name(tmp_path: Path) -> None:
    one = read_records(write(tmp_path, "a.jsonl", '{"text": "a", "label": "x"}'))
    same = read_records(write(tmp_path, "b.csv", "label,text\nx,a\n"))
    other = read_records(write(tmp_path, "c.jsonl", '{"text": "a", "label": "y"}'))
    assert digest_of_rows(one) == digest_of_rows(same) != digest_of_rows(other)
