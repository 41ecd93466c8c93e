"""A job can be ended on a full disk, by giving up a reserve; tried on a real file system that is really full."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from cloud_service.storage.disk_reserve import DiskReserve

ON_A_FULL_DISK = """
import errno, sys
from pathlib import Path
from cloud_service.jobs.record import request_cancel
from cloud_service.jobs.store import JobStore
from cloud_service.storage.database import open_database
from cloud_service.storage.disk_reserve import DiskReserve
from shared.api import PrepareRequest
from shared.errors import DiskError

disk = Path(sys.argv[1])
reserve = DiskReserve(disk / "reserve.bin", 512 * 1024)
if sys.argv[2] == "with reserve":
    reserve.fill()
jobs = JobStore(open_database(disk / "jobs.sqlite3"), reserve=reserve)
names = [jobs.create(PrepareRequest(model="tiny")).id for _ in range(8)]
with (disk / "filler").open("wb", buffering=0) as filler:
    try:
        while filler.write(bytes(4096)):
            pass
    except OSError as error:
        assert error.errno == errno.ENOSPC
try:
    for _ in range(40):  # until the pages that the database already has are used up
        jobs.create(PrepareRequest(model="x" * 4000))
    print("created")
except DiskError:
    print("full")
try:
    print({str(jobs.change(name, lambda job: request_cancel(job, now=jobs.clock())).status) for name in names})
except DiskError:
    print("not cancelled")
"""


def on_a_full_disk(folder: Path, what: str) -> list[str]:
    """Run the script in a namespace of its own, where ``folder`` is a disk of 4 MiB."""
    mount = f'mount -t tmpfs -o size=4m none "{folder}" && exec "$@"'
    user = [] if os.getuid() == 0 else ["--map-root-user"]
    command = ["unshare", "--mount", *user, "sh", "-c", mount, "sh", sys.executable, "-c", ON_A_FULL_DISK]
    done = subprocess.run([*command, str(folder), what], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_jobs_can_be_cancelled_on_a_full_disk(tmp_path: Path) -> None:
    assert on_a_full_disk(tmp_path, "with reserve") == ["full", "{'cancelled'}"]


def test_without_the_reserve_they_could_not(tmp_path: Path) -> None:
    assert on_a_full_disk(tmp_path, "without") == ["full", "not cancelled"]


def test_the_reserve_is_given_up_by_halves_and_filled_again(tmp_path: Path) -> None:
    file = tmp_path / "reserve.bin"
    reserve = DiskReserve(file, 256 * 1024)
    assert not reserve.give()
    reserve.fill()
    sizes = []
    while reserve.give():
        sizes.append(file.stat().st_size // 1024)
    assert sizes == [128, 64, 0]
    reserve.fill()
    assert file.stat().st_size == 256 * 1024


def test_a_reserve_that_the_disk_has_no_room_for_is_not_made(tmp_path: Path) -> None:
    DiskReserve(tmp_path / "reserve.bin", size_bytes=10**15).fill()
    assert not (tmp_path / "reserve.bin").exists()
