"""A lock is held by one process, waits or refuses as asked, and ends with its holder."""

from __future__ import annotations

import subprocess
import sys

import pytest

from shared.errors import Conflict
from shared.file_lock import exclusive

HOLD = "import sys; from pathlib import Path; from shared.file_lock import exclusive\n"
HOLD += "with exclusive(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"


@pytest.fixture
def holder(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_holder_is_refused_with_the_error_given(tmp_path, holder):
    with pytest.raises(Conflict, match="busy"), exclusive(tmp_path / "lock", busy=Conflict("busy")):
        pass


def test_a_killed_holder_leaves_nothing_behind(tmp_path, holder):
    holder.kill()
    holder.wait()
    with exclusive(tmp_path / "lock", busy=Conflict("busy")):
        pass


def test_without_an_error_it_waits_for_the_holder(tmp_path, holder):
    waiter = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "lock")], stdin=subprocess.DEVNULL)
    with pytest.raises(subprocess.TimeoutExpired):
        waiter.wait(timeout=0.5)
    holder.kill()
    assert waiter.wait(timeout=60) == 0


def test_the_folder_of_a_lock_is_made(tmp_path):
    with exclusive(tmp_path / "new" / "lock"):
        assert (tmp_path / "new" / "lock").is_file()
