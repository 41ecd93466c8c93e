"""The journal: bytes by hand, torn tails, locks, full disks."""

from __future__ import annotations

import json
import os
import resource
import signal
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from device_client.tuning.journal import JournalHeader, StepFlags, StepRecord, open_journal, read_journal
from shared.errors import Conflict, DiskError, IntegrityError

HEADER = JournalHeader(
    seed=3, stream="s", distribution="gaussian", sensitive_count=8, queries=2, epsilon=1e-3,
    bundle_digest="sha256:" + "0" * 64, settings_digest="sha256:" + "1" * 64,
)  # fmt: skip
RECORD_BYTES = 18 + 4 * 2


def record(step: int) -> StepRecord:
    return StepRecord(step, lr=0.5, clean_loss=1.25, flags=StepFlags.CLIPPED, gradients=(2.0, 0.5 - step))


def write(path: Path, steps: int) -> bytes:
    with open_journal(path, HEADER) as journal:
        for step in range(steps):
            journal.append(record(step))
    return path.read_bytes()


def test_a_record_is_these_bytes(tmp_path: Path) -> None:
    data = write(tmp_path / "journal.bin", 1)
    body = struct.pack("<IffHff", 0, 0.5, 1.25, 1, 2.0, 0.5)
    assert data[-RECORD_BYTES:-4] == body
    assert data[-4:] == struct.pack("<I", zlib.crc32(body))
    assert data[:8] == b"ZOJRNL\x01\n"
    (length,) = struct.unpack("<I", data[8:12])
    assert json.loads(data[12 : 12 + length])["seed"] == 3


def test_what_was_appended_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "journal.bin"
    write(path, 20)
    assert read_journal(path) == (HEADER, [record(step) for step in range(20)])
    with open_journal(path, HEADER) as journal:
        assert journal.records == [record(step) for step in range(20)]
        journal.append(record(20))
    assert len(read_journal(path)[1]) == 21


def test_what_is_cut_is_gone_and_others_follow_what_is_left(tmp_path: Path) -> None:
    path = tmp_path / "journal.bin"
    expected = write(path, 5)
    write(tmp_path / "long.bin", 12)
    with open_journal(tmp_path / "long.bin", HEADER) as journal:
        journal.cut(20)
        assert len(journal.records) == 12
        journal.cut(3)
        assert journal.records == [record(step) for step in range(3)]
        for step in (3, 4):
            journal.append(record(step))
    assert (tmp_path / "long.bin").read_bytes() == expected


def test_a_torn_tail_is_cut_at_any_byte(tmp_path: Path) -> None:
    path = tmp_path / "journal.bin"
    data = write(path, 5)
    begin = len(data) - 5 * RECORD_BYTES
    for end in range(begin, len(data) + 1):
        path.write_bytes(data[:end])
        whole = (end - begin) // RECORD_BYTES
        with open_journal(path, HEADER) as journal:
            assert journal.records == [record(step) for step in range(whole)]
        assert path.read_bytes() == data[: begin + whole * RECORD_BYTES]


def test_a_header_torn_while_it_was_written_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "journal.bin"
    begin = write(path, 0)
    for end in range(len(begin)):
        path.write_bytes(begin[:end])
        assert write(path, 0) == begin


def test_a_damaged_record_is_refused_by_readers_and_cut_with_what_follows_to_continue(tmp_path: Path) -> None:
    path = tmp_path / "journal.bin"
    data = bytearray(write(path, 5))
    data[-2 * RECORD_BYTES - 7] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match="is damaged after step 2"):
        read_journal(path)
    with open_journal(path, HEADER) as journal:
        assert (len(journal.records), journal.damaged_steps) == (2, 3)
    assert len(read_journal(path)[1]) == 2


def test_a_record_of_another_step_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "journal.bin"
    data = write(path, 5)
    path.write_bytes(data + data[-RECORD_BYTES:])
    with pytest.raises(IntegrityError, match="is damaged after step 5"):
        read_journal(path)


def test_steps_are_appended_in_order(tmp_path: Path) -> None:
    with open_journal(tmp_path / "journal.bin", HEADER) as journal, pytest.raises(ValueError, match="follows"):
        journal.append(record(1))


def test_a_run_of_another_stream_is_for_the_version_that_began_it(tmp_path: Path) -> None:
    path = tmp_path / "journal.bin"
    with open_journal(path, replace(HEADER, stream="an older one")):
        pass

    with pytest.raises(Conflict, match=r"another version.*an older one") as refused:
        open_journal(path, HEADER)

    assert f"Needed: {HEADER.stream}" in str(refused.value)
    assert "--output" in str(refused.value)


def test_a_run_with_other_settings_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "journal.bin"
    before = write(path, 3)
    with pytest.raises(Conflict, match="another settings digest"):
        open_journal(path, replace(HEADER, settings_digest="sha256:" + "2" * 64))
    assert path.read_bytes() == before


def test_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "journal.bin"
    with open_journal(path, HEADER), pytest.raises(Conflict, match="another zo-device is tuning"):
        open_journal(path, HEADER)
    open_journal(path, HEADER).__exit__(None, None, None)


def damage_magic(data: bytes) -> bytes:
    return b"X" + data[1:]


def damage_header(data: bytes) -> bytes:
    return data[:20] + bytes([data[20] ^ 1]) + data[21:]


def damage_length(data: bytes) -> bytes:
    return data[:8] + struct.pack("<I", 1 << 30) + data[12:]


def foreign_header(data: bytes) -> bytes:
    text = b'{"a": 1}'
    return data[:8] + struct.pack("<I", len(text)) + text + struct.pack("<I", zlib.crc32(text))


@pytest.mark.parametrize("damage", [damage_magic, damage_header, damage_length, foreign_header, lambda data: data[:9]])
def test_what_is_not_a_journal_is_refused_and_left_alone(tmp_path: Path, damage: object) -> None:
    path = tmp_path / "journal.bin"
    damaged = damage(write(path, 3))  # type: ignore[operator]
    path.write_bytes(damaged)
    with pytest.raises(IntegrityError, match="is not a journal"):
        read_journal(path)
    if len(damaged) > 9:
        with pytest.raises(IntegrityError, match="is not a journal"):
            open_journal(path, HEADER)
        assert path.read_bytes() == damaged


def test_a_record_written_in_many_short_writes_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole_write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: whole_write(descriptor, data[:5]))
    expected = [record(step) for step in range(3)]
    with open_journal(tmp_path / "journal.bin", HEADER) as journal:
        for one in expected:
            journal.append(one)
    assert read_journal(tmp_path / "journal.bin") == (HEADER, expected)


@contextmanager
def file_size_limit(limit_bytes: int) -> Iterator[None]:
    """Let files grow so far only: a disk that is full, as the operating system tells it.

    Not a fixture: pytest writes its progress before a fixture ends, perhaps to a file that is longer already.
    """
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


def test_a_full_disk_is_a_disk_error_and_keeps_every_whole_record(tmp_path: Path) -> None:
    path = tmp_path / "journal.bin"
    record_bytes = 18 + 4 * HEADER.queries
    room = len(HEADER.to_bytes()) + 10 * record_bytes + record_bytes // 2
    with file_size_limit(room), open_journal(path, HEADER) as journal:
        with pytest.raises(DiskError, match="no space left"):
            list(map(journal.append, map(record, range(100))))
        kept = list(journal.records)
    assert len(kept) == 10
    assert path.stat().st_size == room
    with open_journal(path, HEADER) as journal:
        assert journal.records == kept
    assert path.stat().st_size == room - record_bytes // 2


def test_the_journal_is_private(tmp_path: Path) -> None:
    write(tmp_path / "journal.bin", 0)
    assert (tmp_path / "journal.bin").stat().st_mode & 0o777 == 0o600


MEASURED = replace(HEADER, is_measured=True)


def measured(step: int) -> StepRecord:
    return replace(record(step), signal=-1.5, curvature=390.0)


def test_a_measured_record_holds_signal_and_curvature_and_is_version_2(tmp_path: Path) -> None:
    path = tmp_path / "journal.bin"
    with open_journal(path, MEASURED) as journal:
        journal.append(measured(0))
    data = path.read_bytes()
    body = struct.pack("<IffHffff", 0, 0.5, 1.25, 1, -1.5, 390.0, 2.0, 0.5)
    assert data[:8] == b"ZOJRNL\x02\n"
    assert data[-len(body) - 4 :] == body + struct.pack("<I", zlib.crc32(body))
    assert read_journal(path) == (MEASURED, [measured(0)])


def test_a_torn_tail_of_measured_records_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "journal.bin"
    with open_journal(path, MEASURED) as journal:
        for step in range(3):
            journal.append(measured(step))
    path.write_bytes(path.read_bytes()[:-1])
    with open_journal(path, MEASURED) as journal:
        assert journal.records == [measured(0), measured(1)]


def test_a_journal_of_the_first_version_still_goes_on(tmp_path: Path) -> None:
    """Its bytes as an earlier release wrote them, not as this one does."""
    path = tmp_path / "journal.bin"
    text = json.dumps(
        {
            "bundle_digest": HEADER.bundle_digest, "distribution": "gaussian", "epsilon": 0.001, "queries": 2,
            "seed": 3, "sensitive_count": 8, "settings_digest": HEADER.settings_digest, "stream": "s",
        },
        separators=(",", ":"),
    ).encode()  # fmt: skip
    body = struct.pack("<IffHff", 0, 0.5, 1.25, 1, 2.0, 0.5)
    header = b"ZOJRNL\x01\n" + struct.pack("<I", len(text)) + text + struct.pack("<I", zlib.crc32(text))
    path.write_bytes(header + body + struct.pack("<I", zlib.crc32(body)))
    with open_journal(path, HEADER) as journal:
        assert journal.records == [record(0)]
        journal.append(record(1))
    assert len(read_journal(path)[1]) == 2


def test_a_chosen_step_does_not_go_on_with_a_measured_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal.bin"
    open_journal(path, MEASURED).__exit__(None, None, None)
    with pytest.raises(Conflict, match="is measured"):
        open_journal(path, HEADER)
