"""Hidden states in memory, then in a file that has no name, then nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from device_client.model.kept_states import KeptStates

ROW_BYTES = 3 * 4 * 4


def states(row: int) -> torch.Tensor:
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(row))


def test_rows_fill_memory_first_then_the_file_then_nothing(tmp_path: Path) -> None:
    with KeptStates(2 * ROW_BYTES, tmp_path, 3 * ROW_BYTES) as kept:
        for row in range(7):
            kept.put([row, 1, 2], states(row))

        assert (kept.memory_bytes, kept.file_bytes, kept.row_count) == (2 * ROW_BYTES, 3 * ROW_BYTES, 5)
        for row in range(5):
            found = kept.get([row, 1, 2])
            assert found is not None
            assert torch.equal(found, states(row))
        assert [kept.get([row, 1, 2]) for row in (5, 6)] == [None, None]
        assert kept.get([0, 1]) is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_file_gives_back_the_format_that_was_put(tmp_path: Path, dtype: torch.dtype) -> None:
    with KeptStates(0, tmp_path, 1 << 10) as kept:
        kept.put([1, 2, 3], states(0).to(dtype))

        found = kept.get([1, 2, 3])

        assert found is not None
        assert found.dtype == dtype
        assert torch.equal(found, states(0).to(dtype))


def test_the_file_has_no_name_while_it_is_used_and_none_afterwards(tmp_path: Path) -> None:
    with KeptStates(0, tmp_path, 1 << 10) as kept:
        kept.put([1, 2, 3], states(0))
        assert kept.file_bytes == ROW_BYTES
        assert list(tmp_path.iterdir()) == []
    assert kept.get([1, 2, 3]) is None


def test_a_link_in_the_place_of_the_file_is_not_followed(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("mine")
    (tmp_path / "states.bin").symlink_to(other)
    told: list[str] = []
    with KeptStates(0, tmp_path, 1 << 10, told.append) as kept:
        kept.put([1, 2, 3], states(0))
        assert kept.get([1, 2, 3]) is None
    assert other.read_text() == "mine"
    assert "are computed again" in told[0]


def test_where_no_file_can_be_made_rows_are_not_kept_and_it_is_said_once(tmp_path: Path) -> None:
    told: list[str] = []
    folder = tmp_path / "gone"
    folder.mkdir()
    folder.rmdir()
    with KeptStates(0, folder, 1 << 10, told.append) as kept:
        for row in range(3):
            kept.put([row, 1, 2], states(row))
        assert kept.row_count == 0
    assert len(told) == 1
    assert "No such file" in told[0]
