"""A run's folder: what was asked, what happened, and the values that came out.

    config.json         what the run is, for people and for ``eval --run``          written once
    machine.json        what of the machine decides bits; see ``machine_record``    replaced atomically
    journal.bin         one record per step; see ``journal``                        appended
    metrics.jsonl       one line per validation, and one per event                  appended
    last.safetensors    θ float32, the number of steps behind it, and what else     replaced atomically
                        the next step needs
    best.safetensors    θ of the lowest validation loss                             replaced atomically
    result.json         the outcome: a function of config, machine and journal      written at the end
    resources.json      seconds, memory, device: a function of the machine          written at the end
    loss.svg            the curve                                                   written at the end
    answers.json        the judged rows answered before and after; see ``answers``  written at the end
    seconds.jsonl       when how many steps were done; see ``work_seconds``         appended
    report.html         all of it as a page; ``zo-device runs report`` makes it     written at the end

JSON, lines and θ carry checksums; see ``sealed`` and ``theta_file``. Only reading and writing θ loads torch.
Folder 0700, files 0600: they are functions of private rows. A few rows are in answers.json and so on the page, which
say so, and ``tune --kept-rows 0`` keeps none. No prompt and no free text of a row is in any other file; of labelled
rows, config.json holds the template and each distinct label with its word.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from device_client.tuning.sealed import sealed, unsealed
from shared.durable_files import disk_errors, make_folder, write_atomically
from shared.errors import Conflict, IntegrityError, NotFound

if TYPE_CHECKING:
    from torch import Tensor

    from device_client.tuning.theta_file import Snapshot
    from shared.bundle.read import Bundle

CONFIG, METRICS, RESULT = "config.json", "metrics.jsonl", "result.json"
FILES_BEFORE_THE_END = (
    "machine.json", METRICS, "seconds.jsonl", "last.safetensors", "best.safetensors", CONFIG, "journal.bin",
)  # fmt: skip
_FILE_MODE = 0o600
_RESULT_FIELDS = {"steps_done", "best_step", "stopped_by", "validation"}
_VALIDATION_FIELDS = {"steps_done", "loss", "accuracy", "rows"}


class RunDirectory:
    """The files of one run.

    Args:
        path: The folder; ``create`` makes it, the constructor touches nothing.
        labels: What its files of θ say of it: the method, and its numbers.
    """

    def __init__(self, path: Path, labels: Mapping[str, str] | None = None) -> None:
        self.path, self._labels = path, dict(labels or {})

    def create(self) -> None:
        """Make the folder where it is missing.

        Raises:
            DiskError: The disk is full or not writable.
        """
        with disk_errors(self.path):
            make_folder(self.path, mode=0o700)
            self.path.chmod(0o700)

    def files(self) -> frozenset[str] | None:
        """Return the names of all files in the folder, or None where there is no folder."""
        return frozenset(path.name for path in self.path.iterdir()) if self.path.exists() else None

    def discard(self, *, except_for: frozenset[str] | None) -> None:
        """Take a run without steps away.

        Args:
            except_for: What ``files`` returned before the run began: it stays, and so does a folder that was there.
        """
        with contextlib.suppress(OSError):  # what cannot be removed is no reason to hide why there is no run
            for name in FILES_BEFORE_THE_END:
                if name not in (except_for or ()):
                    (self.path / name).unlink(missing_ok=True)
            if except_for is None:
                self.path.rmdir()

    @property
    def journal(self) -> Path:
        """The journal's file."""
        return self.path / "journal.bin"

    @property
    def name(self) -> str:
        """The run's name."""
        return self.path.name

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file atomically, with its checksum.

        Raises:
            DiskError: The disk is full or not writable.
        """
        self.write_bytes(name, json.dumps(sealed(content), indent=1, sort_keys=True).encode() + b"\n")

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a file atomically.

        Raises:
            DiskError: The disk is full or not writable.
        """
        with disk_errors(self.path / name):
            write_atomically(self.path / name, content, mode=_FILE_MODE)

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Return the object that ``write_json`` wrote, or None where there is no such file.

        Raises:
            IntegrityError: It is not a JSON object, or not the one that was written.
        """
        path, next_step = self.path / name, "restore it from a copy, or tune again"
        try:
            content = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise IntegrityError(f"{path} is not JSON", next_step=next_step) from error
        if not isinstance(content, dict):
            raise IntegrityError(f"{path} is not a JSON object", next_step=next_step)
        whole = unsealed(content)
        if whole is None:
            raise IntegrityError(f"{path} is damaged: it is not what was written", next_step=next_step)
        return whole

    def read_result(self) -> dict[str, Any] | None:
        """Return what the run came to, or None while it is not finished.

        Raises:
            IntegrityError: result.json is damaged.
        """
        result = self.read_json(RESULT)
        if result is not None and not result.keys() >= _RESULT_FIELDS:
            raise IntegrityError(
                f"{self.path / RESULT} does not say what the run came to",
                needed="the file as zo-device tune wrote it",
                next_step="remove that file and run the same tune command again: the run ends from its last step",
            )
        return result

    def read_config(self) -> dict[str, Any]:
        """Return what the run is.

        Raises:
            NotFound: There is no run in the folder.
            IntegrityError: Its configuration is damaged.
        """
        config = self.read_json(CONFIG)
        if config is None:
            raise NotFound(f"no run in {self.path}", needed="the folder of a tuning run", next_step="zo-device runs")
        settings = config.get("settings")
        is_whole = (
            isinstance(settings, dict) and "objective" in settings and {"rendering", "max_tokens"} <= config.keys()
        )
        if not is_whole:
            raise IntegrityError(
                f"{self.path / CONFIG} does not say what the run's rows and prompts were",
                needed="the file as zo-device tune wrote it",
                next_step="restore it from a copy, or tune again",
            )
        return config

    def append_metric(self, metric: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl and flush it; a torn last line is cut first.

        Raises:
            DiskError: The disk is full or not writable.
        """
        self.append_line(METRICS, metric)

    def metrics(self) -> list[dict[str, Any]]:
        """Return the whole lines of metrics.jsonl; a torn last line is passed over.

        Raises:
            IntegrityError: A whole line is damaged.
        """
        return [
            _metric(line, f"{self.path / METRICS} line {number}")
            for number, line in enumerate(self.lines(METRICS), start=1)
        ]

    def forget_metrics(self) -> None:
        """Delete metrics.jsonl, which a run that starts over writes again.

        Raises:
            DiskError: The file cannot be deleted.
        """
        with disk_errors(self.path / METRICS):
            (self.path / METRICS).unlink(missing_ok=True)

    def append_line(self, name: str, line: dict[str, Any]) -> None:
        """Append one line of JSON to a file and flush it; a torn last line is cut first.

        Raises:
            DiskError: The disk is full or not writable.
        """
        path = self.path / name
        with disk_errors(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _FILE_MODE)
            with os.fdopen(descriptor, "r+b") as file:
                file.truncate(file.read().rfind(b"\n") + 1)
                file.seek(0, os.SEEK_END)
                file.write(json.dumps(sealed(line), sort_keys=True).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())

    def lines(self, name: str) -> list[dict[str, Any]]:
        """Return the whole lines of a file of JSON lines; a torn last line is passed over.

        Raises:
            IntegrityError: A whole line is not what was written.
        """
        path = self.path / name
        if not path.exists():
            return []
        lines = path.read_bytes().split(b"\n")[:-1]
        return [_object(line, f"{path} line {number}") for number, line in enumerate(lines, start=1)]

    def write_theta(self, name: str, theta: Tensor, steps_done: int, state: Mapping[str, Tensor] | None = None) -> None:
        """Write θ, and what the engine of the steps keeps beside it, atomically.

        Raises:
            DiskError: The disk is full or not writable.
        """
        from device_client.tuning.theta_file import theta_bytes

        self.write_bytes(name, theta_bytes(theta, steps_done, state, self._labels))

    def read_theta(self, name: str) -> Snapshot | None:
        """Return a written θ, or None where there is no such file.

        Raises:
            IntegrityError: The file is damaged or holds something else.
        """
        from device_client.tuning.theta_file import read_theta_file

        path = self.path / name
        return read_theta_file(path) if path.exists() else None


def _damaged_line(place: str) -> IntegrityError:
    return IntegrityError(
        f"{place} is damaged",
        next_step="remove that file and run the same tune command again: it is made anew from the journal",
    )


def _object(line: bytes, place: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise _damaged_line(place) from error
    whole = unsealed(found) if isinstance(found, dict) else None
    if whole is None:
        raise _damaged_line(place)
    return whole


def _metric(line: dict[str, Any], place: str) -> dict[str, Any]:
    if "kind" not in line or (line["kind"] == "validation" and not line.keys() >= _VALIDATION_FIELDS):
        raise _damaged_line(place)
    return line


def find_run(runs: Path, name: str, bundle: Bundle) -> RunDirectory:
    """Return a run made from ``bundle``, given by name or by path.

    Raises:
        NotFound: There is no such run.
        Conflict: It was made from another bundle, so its values belong to other weights.
    """
    run = locate_run(runs, name)
    digest = (run.read_json(CONFIG) or {}).get("bundle_digest")
    if digest != bundle.digest:
        raise Conflict(
            f"run {run.name} was made from bundle {digest}",
            needed=f"a run of {bundle.digest}",
            next_step="name that bundle, or another run",
        )
    return run


def locate_run(runs: Path, name: str) -> RunDirectory:
    """Return a run given by its name in ``runs`` or by its folder.

    Raises:
        NotFound: There is no such run.
    """
    for folder in (runs / name, Path(name)):
        if (folder / CONFIG).is_file():
            return RunDirectory(folder)
    raise NotFound(f"no run {name!r} in {runs}", needed="a run's name or folder", next_step="zo-device runs")


def load_theta(path: Path, *, sensitive_count: int | None = None, method: str | None = None) -> Tensor:
    """Return a run's best θ, float32 (k,).

    Args:
        path: The run's folder.
        sensitive_count: How many it should have; None does not compare.
        method: What they should mean; None does not compare.

    Raises:
        NotFound: It is no run, or has no best values yet.
        Conflict: It has another number of values, or values of another method.
        IntegrityError: The values are damaged.
    """
    snapshot = RunDirectory(path).read_theta("best.safetensors")
    if snapshot is None:
        raise NotFound(f"no tuned values in {path}", needed="the folder of a tuning run", next_step="zo-device runs")
    of_method = snapshot.labels.get("method", "sparse")  # files of earlier releases do not name it
    if method not in (None, of_method):
        raise Conflict(
            f"values of method {of_method} in {path}",
            needed=f"values of method {method}, which the run's configuration names",
            next_step="restore config.json and best.safetensors of the same run, or tune again",
        )
    if sensitive_count not in (None, snapshot.theta.numel()):
        raise Conflict(
            f"{snapshot.theta.numel()} tuned values in {path}",
            needed=f"{sensitive_count}, as many as the bundle has",
            next_step="zo-device runs",
        )
    return snapshot.theta
