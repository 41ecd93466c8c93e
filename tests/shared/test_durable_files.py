"""What the operating system refuses is named with the place; where no folder can be made, too."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.durable_files import disk_errors, make_folder
from shared.errors import DiskError


def make(path: Path) -> None:
    with disk_errors(path):
        make_folder(path)


def test_a_file_or_a_loop_of_links_where_a_folder_is_needed_is_a_disk_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    for place in (tmp_path / "file" / "a", tmp_path / "loop" / "a"):
        with pytest.raises(DiskError, match=f"{place} cannot be written") as caught:
            make(place)
        assert caught.value.next_step == "change its permissions or choose another folder"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that lets nobody make folders")
def test_a_folder_where_the_system_makes_none_is_a_disk_error() -> None:
    with pytest.raises(DiskError, match="/proc/zo cannot be written: no folder can be made there"):
        make(Path("/proc/zo"))
