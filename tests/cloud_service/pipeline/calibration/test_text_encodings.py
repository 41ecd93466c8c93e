"""A text in another encoding, with half of a character or with nothing in it: file and line are named."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from cloud_service.cli import main
from cloud_service.pipeline.calibration.documents import read_documents
from cloud_service.sources import SourcePolicy, TextSource
from shared.errors import DataError

GOOD = '{"text": "a b c"}\n'
LATIN1 = '{"text": "un café noir"}\n'.encode("latin-1")


def refusal(path: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        list(read_documents(TextSource(path), SourcePolicy()))
    return caught.value


@pytest.mark.parametrize(
    ("content", "found", "encoding"),
    [
        (GOOD.encode() + LATIN1, "t.jsonl line 2 is not UTF-8", "LATIN1"),
        ((GOOD * 2).encode("utf-16"), "t.jsonl line 1 is not UTF-8: it looks like UTF-16", "UTF-16"),
    ],
)
def test_another_encoding_is_named_with_its_line_and_the_command_that_changes_it(
    content: bytes, found: str, encoding: str, tmp_path: Path
) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(content)
    error = refusal(path)
    assert error.found == found
    assert f"iconv -f {encoding} -t UTF-8" in error.next_step


def test_a_text_file_names_the_line_although_it_is_decoded_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(b"a b c\n\n" * 5000 + b"caf\xe9\n" + b"d e f\n" * 5000)
    assert refusal(path).found == "t.txt line 10001 is not UTF-8"


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path: Path) -> None:
    for name, content in (("t.txt", "a b"), ("t.jsonl", '{"text": "a b"}')):
        (tmp_path / name).write_text(content, encoding="utf-8-sig")
        assert list(read_documents(TextSource(tmp_path / name), SourcePolicy())) == ["a b"]


@pytest.mark.parametrize("name", ["t.jsonl", "en/t.json.gz"])
def test_half_of_a_surrogate_pair_is_refused_with_its_line(name: str, tmp_path: Path) -> None:
    line = '{"text": "great \\ud83d"}\n'  # half of an emoji, as JavaScript's slice() leaves it
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    content = (GOOD + line).encode()
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    error = refusal(path if name.endswith(".jsonl") else tmp_path)
    assert "line 2: not a JSON object with a text: a string holds half of a surrogate pair" in error.found


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('{"content": "a b c", "id": 1}', "line 1: not a JSON object with a text, but with 'content', 'id'"),
        ("{}", "line 1: not a JSON object with a text"),
        ('["text"]', "line 1: not a JSON object with a text"),
        ('{"text": null}', "line 1: text is NoneType"),
    ],
)
def test_a_row_without_a_text_shows_the_keys_that_it_has(line: str, found: str, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(line + "\n")
    assert refusal(path).found == f"t.jsonl {found}"


def test_blank_documents_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in ("", " \n\t ", "\u3000", "a b")))
    assert list(read_documents(TextSource(path), SourcePolicy())) == ["a b"]


def test_the_command_says_it_without_a_traceback(
    make_checkpoint: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(LATIN1)
    folder = make_checkpoint()  # type: ignore[operator]
    arguments = ["prepare", str(folder), "--output", str(tmp_path / "out"), "--calibration-text", str(path)]
    assert main([*arguments, "--offline", "--quiet"]) == DataError.exit_code
    assert capsys.readouterr().err.startswith("Error: t.jsonl line 1 is not UTF-8\nNeeded: UTF-8\nNext: save the file")
