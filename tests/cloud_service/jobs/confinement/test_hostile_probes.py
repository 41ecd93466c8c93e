"""What a job's process can reach in each mode, tried by a program that tries everything; as root, as CI runs."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloud_service.job_isolation import Isolation
from cloud_service.jobs.confinement.choose import Confinement, ConfinementError, ConfinementRules
from cloud_service.jobs.launcher import Ended, SubprocessLauncher
from cloud_service.jobs.limits import JobLimits
from cloud_service.jobs.messages import JobOrder, Noted
from cloud_service.settings import job_environment
from shared.api import PrepareRequest

HOSTILE = Path(__file__).resolve().parents[2] / "service" / "hostile_job.py"
PATIENCE_SECONDS = 60

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="modes of a service that runs as root")


class Victim:
    """A service's data folder with everything that a job must not touch, and a model root."""

    def __init__(self, folder: Path, port: int) -> None:
        self.data = folder / "data"
        self.models = folder / "models"
        (self.models / "probe").mkdir(parents=True)
        self.models.chmod(0o700)
        (self.models / "weights").touch(0o600)
        (self.data / "store").mkdir(parents=True)
        (self.data / "signing-key.pem").write_text("the key")
        (self.data / "jobs.sqlite3").write_text("the database")
        (self.data / "jobs" / "other" / "workspace").mkdir(parents=True)
        (self.data / "jobs" / "other" / "workspace" / "secret").write_text("another's")
        self.environment = job_environment() | {"SERVICE_PID": str(os.getpid()), "HOST_PORT": str(port)}

    def probe(self, isolation: Isolation) -> dict[str, str]:
        """Run the program in that mode and return what it reports."""
        confinement = Confinement(ConfinementRules(isolation, hidden=(self.data,)), self.environment)
        launcher = SubprocessLauncher(
            self.environment, (sys.executable, str(HOSTILE)), confinement=confinement, limits=JobLimits().for_kernel()
        )
        order = JobOrder(request=PrepareRequest(model="probe"), model_roots=(self.models,), is_offline=True)
        process = launcher.start(self.data / "jobs" / "own", order)
        try:
            return dict(self._reports(process))
        finally:
            process.kill()

    def _reports(self, process: object) -> Iterator[tuple[str, str]]:
        while not isinstance(heard := process.receive(PATIENCE_SECONDS), Ended):  # type: ignore[attr-defined]
            assert isinstance(heard, Noted), heard
            name, _, result = heard.message.partition(": ")
            yield name, result
        assert heard == Ended(0), heard

    def unharmed(self) -> bool:
        planted = [self.data / "store" / "planted", self.models / "planted", self.data / "jobs" / "own" / "report.html"]
        return not any(path.is_symlink() or path.exists() for path in planted)


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Victim]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield Victim(tmp_path, listener.getsockname()[1])


@pytest.mark.attack
@pytest.mark.parametrize("isolation", ["user", "namespace", "landlock", "auto"])
def test_a_hostile_job_reaches_nothing_but_its_workspace(victim: Victim, isolation: Isolation) -> None:
    reports = victim.probe(isolation)
    assert reports.pop("read the model and write in the workspace") == "done"
    assert len(reports) == 15
    assert [name for name, result in reports.items() if result == "done"] == []
    assert victim.unharmed()
    allowed = victim.data / "jobs" / "own" / "workspace" / "allowed"
    assert allowed.read_bytes() == b"in the workspace"
    assert allowed.stat().st_uid == 0  # on the disk nothing changes hands


def test_without_isolation_the_same_program_reaches_all_of_it(victim: Victim, caplog: pytest.LogCaptureFixture) -> None:
    reports = victim.probe("none")
    assert reports["read the signing key"] == reports["connect to the host"] == "done"
    assert reports["write into the models"] == reports["read another job"] == reports["signal the service"] == "done"
    assert "a job runs without isolation" in caplog.text


@pytest.mark.attack
def test_a_model_root_around_the_data_folder_shows_nothing_of_it(victim: Victim) -> None:
    victim.models = victim.data.parent
    (victim.models / "weights").touch()
    reports = victim.probe("user")
    assert reports["read the signing key"] == reports["read another job"] == "FileNotFoundError"


def test_an_allow_list_that_would_show_the_data_folder_is_refused(victim: Victim) -> None:
    victim.models = victim.data.parent
    (victim.models / "weights").touch()
    with pytest.raises(ConfinementError, match=r"data lies in .*, which jobs may read"):
        victim.probe("landlock")
