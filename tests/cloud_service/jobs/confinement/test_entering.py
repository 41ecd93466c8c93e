"""The process that becomes a job, run as another user: what a service that is not root gets."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloud_service.jobs import confinement
from cloud_service.jobs.confinement.plan import ConfinementPlan, Mode

PYTHON = "/usr/bin/python3"
UID = 61999
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that the other user owns, with a copy of the confinement's modules that it may read."""
    folder = Path(tempfile.mkdtemp(prefix="confined-"))
    modules = folder / "python" / "cloud_service" / "jobs" / "confinement"
    shutil.copytree(Path(str(confinement.__file__)).parent, modules, ignore=shutil.ignore_patterns("__pycache__"))
    for package in (modules.parents[1], modules.parents[0]):
        (package / "__init__.py").touch()
    for name in ("workspace", "temporary", "secret"):
        (folder / name).mkdir()
    (folder / "secret" / "key").write_text("the key")
    for path in (folder, *folder.rglob("*")):
        os.chown(path, UID, UID)
    yield folder
    shutil.rmtree(folder)


def enter(place: Path, mode: Mode, script: str, **changes: object) -> subprocess.CompletedProcess[str]:
    """Run a shell script as the other user, confined in that mode."""
    plan = {
        "mode": mode, "service_pid": os.getpid(), "uid": UID, "network": "none",
        "system": ("/usr", f"{place}/python"), "listable": (), "readable": (), "writable": (f"{place}/workspace",),
        "hidden": (f"{place}/secret",), "links": (("/bin", "usr/bin"), ("/lib", "usr/lib"), ("/lib64", "usr/lib64")),
        "workspace": f"{place}/workspace", "temporary": f"{place}/temporary", "shared_memory_bytes": 1 << 20,
        "environment": {}, "limits": {"CORE": (0, 0)},
    }  # fmt: skip
    text = ConfinementPlan(**{**plan, **changes}).to_json()  # type: ignore[arg-type]
    return subprocess.run(
        [PYTHON, "-P", "-m", "cloud_service.jobs.confinement.enter", text, "/bin/sh", "-c", script],
        env={"PYTHONPATH": f"{place}/python", "PATH": "/usr/bin:/bin"},
        user=UID, group=UID, extra_groups=[], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip


@pytest.mark.attack
@pytest.mark.parametrize("mode", ["namespace", "landlock"])
def test_a_job_of_a_service_that_is_not_root_reads_no_secret_and_keeps_its_workspace(place: Path, mode: Mode) -> None:
    done = enter(place, mode, f"echo mine > made; echo t > $TMPDIR/t; cat {place}/secret/key || cat made")
    assert (done.returncode, done.stdout) == (0, "mine\n")
    made = place / "workspace" / "made"
    assert (made.read_text(), made.stat().st_uid) == ("mine\n", UID)
    assert (place / "temporary" / "t").exists()


@pytest.mark.attack
def test_a_namespace_shows_no_process_and_no_network_of_the_machine(place: Path) -> None:
    done = enter(place, "namespace", "echo /proc/[0-9]*; tail -n +3 /proc/net/dev; cat /proc/self/status")
    processes, network, *status = done.stdout.splitlines()
    assert len(processes.split()) <= 3
    assert network.split()[:2] == ["lo:", "0"]
    assert "NoNewPrivs:\t1" in status
    assert "CapEff:\t0000000000000000" in status


@pytest.mark.parametrize("mode", ["namespace", "landlock", "none"])
@pytest.mark.parametrize(
    ("script", "status"), [("exit 7", 7), ("exit 130", 130), ("kill -ABRT $$", -6), ("kill -9 $$", -9)]
)
def test_the_guard_ends_as_the_job_ended(place: Path, mode: Mode, script: str, status: int) -> None:
    assert enter(place, mode, script).returncode == status


@pytest.mark.parametrize(
    ("mode", "changes", "reason"),
    [
        ("user", {}, "cannot make a user namespace for showing owners"),
        ("namespace", {"writable": ("/absent",)}, "cannot make a file tree: No such file or directory"),
        ("landlock", {"workspace": "/absent"}, "cannot enter the workspace: No such file or directory"),
    ],
)
def test_what_the_system_refuses_is_told_and_nothing_runs(
    place: Path, mode: Mode, changes: dict[str, object], reason: str
) -> None:
    done = enter(place, mode, "echo ran", **changes)
    assert done.returncode == 1
    failed = json.loads(done.stdout)
    assert (failed["kind"], failed["error"]["type"]) == ("failed", "confinement-error")
    assert f"job isolation '{mode}': {reason}" in failed["error"]["message"]


def test_limits_hold_for_the_job(place: Path) -> None:
    limits = {"CORE": (0, 0), "FSIZE": (4096, 4096), "NOFILE": (32, None)}
    done = enter(place, "namespace", "ulimit -f; ulimit -n; ulimit -c", limits=limits)
    assert done.stdout.split() == ["8", "32", "0"]  # the shell counts files in blocks of 512 bytes


def test_a_job_whose_service_is_gone_does_not_start(place: Path) -> None:
    done = enter(place, "none", "echo ran", service_pid=1)
    assert (done.returncode, done.stdout) == (1, "")
