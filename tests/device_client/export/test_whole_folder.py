"""A folder appears whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from device_client.export.whole_folder import whole_folder
from shared.errors import DiskError, InvalidRequest


def test_what_was_written_appears_at_once(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b"
    with whole_folder(target, 10) as folder:
        (folder / "x").write_bytes(b"x")
        assert not target.exists()
    assert (target / "x").read_bytes() == b"x"
    assert [path.name for path in target.parent.iterdir()] == ["b"]


def test_an_empty_folder_is_taken_and_a_full_one_is_not(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with whole_folder(tmp_path / "empty", 10) as folder:
        (folder / "x").write_bytes(b"x")
    with pytest.raises(InvalidRequest, match="holds other files"), whole_folder(tmp_path / "empty", 10):
        raise AssertionError
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InvalidRequest, match="exists already"), whole_folder(tmp_path / "link", 10):
        raise AssertionError


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_fails_leaves_nothing_not_even_parents_it_made(tmp_path: Path, error: type[BaseException]) -> None:
    def fail() -> None:
        with whole_folder(tmp_path / "a" / "b" / "c", 10) as folder:
            (folder / "x").write_bytes(b"x")
            raise error

    with pytest.raises(error):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_named_with_both_numbers_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(DiskError) as caught, whole_folder(tmp_path / "a" / "b", 10**18):
        raise AssertionError
    assert "free" in caught.value.found
    assert str(10**18) in caught.value.needed
    assert list(tmp_path.iterdir()) == []
