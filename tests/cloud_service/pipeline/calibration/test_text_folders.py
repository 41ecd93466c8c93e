"""Texts given as folders: data files inside them, and nothing that a file in them points to."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import datasets
import pytest

from cloud_service.pipeline.calibration.documents import read_documents, text_folder_files
from cloud_service.sources import SourcePolicy, TextSource
from shared.errors import DataError


def documents(folder: Path) -> list[str]:
    return list(read_documents(TextSource(folder), SourcePolicy()))


def write_lines(path: Path, *texts: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps({"text": text, "url": "u"}) + "\n" for text in texts).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.mark.parametrize("name", ["a.jsonl", "en/a.jsonl", "en/a.json", "en/a.jsonl.gz", "en/c4-train.0.json.gz"])
def test_lines_of_json_are_read_compressed_or_not(tmp_path: Path, name: str) -> None:
    write_lines(tmp_path / name, "first", "", "second")
    assert documents(tmp_path) == ["first", "second"]


def test_files_of_parquet_are_read(tmp_path: Path) -> None:
    (tmp_path / "en").mkdir()
    datasets.Dataset.from_dict({"text": ["first", "second"], "url": ["u", "v"]}).to_parquet(
        tmp_path / "en" / "a.parquet"
    )
    assert documents(tmp_path) == ["first", "second"]


def test_the_training_files_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name, text in {"c4-train.1": "second", "c4-train.0": "first", "c4-validation.0": "held out"}.items():
        write_lines(tmp_path / "en" / f"{name}.json.gz", text)
    assert documents(tmp_path) == ["first", "second"]
    assert text_folder_files(tmp_path)[1] == ["en/c4-train.0.json.gz", "en/c4-train.1.json.gz"]


def test_a_folder_without_data_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# Text\n")
    with pytest.raises(DataError, match="holds no data files"):
        documents(tmp_path)


@pytest.mark.parametrize("data", [b"no gzip", gzip.compress(b'{"text": "a"}\n' * 100, mtime=0)[:-10]])
def test_a_damaged_archive_is_refused_by_name(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.json.gz").write_bytes(data)
    with pytest.raises(DataError, match=r"a\.json\.gz is damaged"):
        documents(tmp_path)


@pytest.mark.parametrize("data", [b"no parquet", b""])
def test_a_damaged_parquet_file_is_refused_by_name(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(data)
    with pytest.raises(DataError, match=r"a\.parquet: "):
        documents(tmp_path)


@pytest.mark.attack
@pytest.mark.parametrize("path", ["../secret/*.jsonl", "/etc/*", "https://127.0.0.1:9/a.jsonl", "hf://datasets/a/b/*"])
def test_what_a_card_says_about_other_places_counts_for_nothing(tmp_path: Path, path: str) -> None:
    write_lines(tmp_path / "secret" / "keys.jsonl", "the secret")
    folder = tmp_path / "texts"
    folder.mkdir()
    front = f"configs:\n- config_name: en\n  data_files:\n  - split: train\n    path: {path}\n"
    (folder / "README.md").write_text(f"---\n{front}---\n")
    with pytest.raises(DataError, match="texts holds no data files"):
        documents(folder)
    write_lines(folder / "en" / "a.jsonl", "mine")
    assert documents(folder) == ["mine"]


@pytest.mark.attack
def test_a_script_beside_the_data_is_never_run(tmp_path: Path) -> None:
    write_lines(tmp_path / "en" / "a.jsonl", "mine")
    (tmp_path / f"{tmp_path.name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    assert documents(tmp_path) == ["mine"]
    assert not (tmp_path / "ran").exists()


@pytest.mark.attack
@pytest.mark.parametrize("link", ["en", "en/a.jsonl"])
def test_a_link_out_of_the_folder_is_refused(tmp_path: Path, link: str) -> None:
    write_lines(tmp_path / "secret" / "a.jsonl", "the secret")
    folder = tmp_path / "texts"
    (folder / link).parent.mkdir(parents=True)
    (folder / link).symlink_to(tmp_path / "secret" / Path(link).relative_to("en"))
    with pytest.raises(DataError, match=f"{link} is a link out of the folder of texts"):
        documents(folder)


@pytest.mark.attack
def test_a_small_archive_of_one_endless_line_is_refused(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.json.gz", "wb", compresslevel=1) as file:
        for _ in range(65):
            file.write(bytes(1 << 20))
    with pytest.raises(DataError, match=r"a\.json\.gz holds a line of more than 67108864 bytes"):
        documents(tmp_path)


@pytest.mark.attack
def test_half_of_a_surrogate_pair_is_refused_by_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "whole"}\n{"text": "half \\ud83d"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl line 2: .*half of a surrogate pair"):
        documents(tmp_path)
