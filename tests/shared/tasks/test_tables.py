"""CSV and TSV files as spreadsheets and data tools write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.errors import DataError
from shared.tasks.datasets import read_layout, read_records

GOOD_AND_BAD = [{"text": "fine", "label": "good"}, {"text": "poor", "label": "bad"}]


def rows_of(folder: Path, name: str, content: str | bytes, *, glue: bool = False) -> list[dict[str, str]]:
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return [dict(record.fields) for record in read_records(folder / name, glue=glue)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "text,label\nfine,good\npoor,bad\n"),
        ("a.csv", "text;label\nfine;good\npoor;bad\n"),
        ("a.csv", "text\tlabel\nfine\tgood\npoor\tbad\n"),
        ("a.csv", "text|label\nfine|good\npoor|bad\n"),
        ("a.tsv", "text,label\nfine,good\npoor,bad\n"),
        ("a.CSV", "Text,LABEL\nfine,good\npoor,bad\n"),
        ("a.csv", "text, label\nfine, good\npoor, bad\n"),
        ("a.csv", ' "text", "label"\nfine, good\npoor, bad\n'.lstrip()),
        ("a.csv", "sep=;\ntext;label\nfine;good\npoor;bad\n"),
        ("a.csv", "\ufefftext,label\r\nfine,good\r\npoor,bad\r\n"),
        ("a.csv", "text,label\rfine,good\rpoor,bad\r"),
        ("a.csv", "text,label\n\nfine,good\n\npoor,bad"),
        ("a.tsv", 'text\tlabel\n"fine"\t"good"\npoor\tbad\n'),
    ],
)
def test_a_table_of_any_dialect_gives_the_same_rows(tmp_path: Path, name: str, content: str) -> None:
    assert rows_of(tmp_path, name, content) == GOOD_AND_BAD


@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_table_of_any_unicode_coding_gives_the_same_rows(tmp_path: Path, coding: str) -> None:
    assert rows_of(tmp_path, "a.csv", "text,label\nGrüße,世\n".encode(coding)) == [{"text": "Grüße", "label": "世"}]


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ('text\tlabel\n"She said ""hi"" to him"\tx\n', ['She said "hi" to him']),
        ('text\tlabel\n"line one\nline two"\tx\nplain\ty\n', ["line one\nline two", "plain"]),
        ('text\tlabel\n"a\tb"\tx\n', ["a\tb"]),
        ('text\tlabel\n"open\tx\nnext"\ty\n', ['"open', 'next"']),  # each line fits the header as it stands
        ('text\tlabel\n"a" b\tx\n', ['"a" b']),
        ('text\tlabel\nsize 5"\tx\n', ['size 5"']),
        ('text\tlabel\n"unclosed\tx\nplain\ty\n', ['"unclosed', "plain"]),
    ],
)
def test_a_quotation_mark_in_a_tsv_is_what_the_file_says(tmp_path: Path, content: str, texts: list[str]) -> None:
    assert [row["text"] for row in rows_of(tmp_path, "a.tsv", content)] == texts


def test_glues_quotation_marks_are_letters(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, "train.tsv", 'sentence\tlabel\n"fine"\t1\n', glue=True)
    assert rows == [{"sentence": '"fine"', "label": "1"}]


def test_a_field_may_be_longer_than_the_standard_librarys_limit(tmp_path: Path) -> None:
    long = "x " * 70_000
    assert rows_of(tmp_path, "a.csv", f"text,label\n{long},good\n")[0]["text"] == long


def test_a_blank_behind_the_separator_may_come_before_a_quoted_field(tmp_path: Path) -> None:
    assert rows_of(tmp_path, "a.csv", 'label, text\ngood, "a, b"\n') == [{"label": "good", "text": "a, b"}]


def test_a_layout_says_columns_separator_and_quotes(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("Text;Label;Note\na;b;c\n")
    layout = str(read_layout(tmp_path / "a.csv"))
    assert layout == "columns text, label, Note; separated by a semicolon; quotation marks enclose fields"
    (tmp_path / "a.jsonl").write_text("{}")
    assert read_layout(tmp_path / "a.jsonl") is None


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("text,label,text\na,b,c\n", "two columns have the same name"),
        ("text,label\na,b\nc\n", "line 3: not as many columns"),
        ('text,label\na,b\n"c\nd,e\n', "line 3: unexpected end of data"),
        ('text,label\na,b\n"c"d,e\n', "line 3: ',' expected after"),
    ],
)
def test_a_table_that_does_not_fit_its_header_is_refused_by_line(tmp_path: Path, content: str, fault: str) -> None:
    with pytest.raises(DataError, match=fault):
        rows_of(tmp_path, "a.csv", content)


def test_a_header_that_may_be_a_row_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("secret one,good\nsecret two,bad\n")
    assert str(read_layout(tmp_path / "a.csv")).startswith("2 columns; separated by a comma")


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b'{"text": "a"}\n{"text": "caf\xe9"}\n', r"a\.jsonl line 2 is not UTF-8 \(byte 27 is not UTF-8\)"),
        ('{"text": "a"}\n'.encode("utf-16-le"), r"a\.jsonl line 1 holds a zero byte"),
        ('{"text": "a"}\n'.encode("utf-16-be"), r"a\.jsonl line 1 holds a zero byte"),
        ('{"text": "a"}\n'.encode("utf-32"), r"a\.jsonl line 1 is not UTF-8"),
        (b"\xff\xfe{\x00\x00", r"a\.jsonl line 1 is not UTF-16"),
    ],
)
def test_another_coding_is_refused_by_file_and_line(tmp_path: Path, content: bytes, fault: str) -> None:
    with pytest.raises(DataError, match=fault) as caught:
        rows_of(tmp_path, "a.jsonl", content)
    assert "iconv -f" in caught.value.next_step
