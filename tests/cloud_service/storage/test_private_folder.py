"""What the service keeps is for its user alone, whatever was there before."""

from __future__ import annotations

import stat
from pathlib import Path

from cloud_service.app import open_service
from cloud_service.settings import Settings
from cloud_service.storage.private_folder import make_private


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_rights_of_others_are_taken_away(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "jobs" / "abc" / "workspace").mkdir(parents=True)
    files = [data / "signing-key.pem", data / "jobs.sqlite3", data / "jobs" / "abc" / "log.txt"]
    for file in files:
        file.touch()
        file.chmod(0o666)
    for folder in (data, data / "jobs", data / "jobs" / "abc"):
        folder.chmod(0o777)
    make_private(data)
    assert {mode(file) for file in files} == {0o600}
    assert {mode(folder) for folder in (data, data / "jobs", data / "jobs" / "abc")} == {0o700}


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.touch()
    outside.chmod(0o644)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link").symlink_to(outside)
    make_private(tmp_path / "data")
    assert mode(outside) == 0o644


def test_an_open_service_leaves_nothing_to_others(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o755)
    with open_service(Settings(data=data)) as service:
        service.keys.create_first()
        secrets = ("jobs.sqlite3", "jobs.sqlite3-wal", "jobs.sqlite3-shm", "signing-key.pem")
        assert {name: mode(data / name) for name in secrets} == dict.fromkeys(secrets, 0o600)
    assert mode(data) == 0o700
