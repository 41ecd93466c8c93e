"""The journal: everything that, with the bundle and the data, makes a run; one small record per step.

    file      magic "ZOJRNL" version 0A · header length u32 · header JSON · crc32 u32 · record · record · …
    record    step u32 · lr f32 · clean loss f32 · flags u16 · g f32 × queries · crc32 u32             (18 + 4·q bytes)
    measured  step u32 · lr f32 · clean loss f32 · flags u16 · s f32 · t f32 · g f32 × queries · crc32 u32      (+ 8)

Version 1 has records; version 2, of runs whose step is measured, has measured ones, with signal s and curvature t.

All numbers are little-endian; each crc32 is over the bytes of its own header or record. A record is appended in one
write before θ moves, and flushed to the disk every few records. A torn record at the end (kill −9, power cut), and a
damaged one with all that follows, are cut when the journal is opened to continue: the steps they held are computed
again and come out the same. Who only reads gets no records of a damaged journal. θ of any step follows from the
bundle's values, the header's seed and stream, and the records up to it. Costs 22 or 30 bytes per step.
Knows nothing about models, data or θ. The records are functions of the user's data: they stay on the device.
"""

from __future__ import annotations

import json
import math
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import IntFlag
from pathlib import Path
from types import TracebackType

from device_client.planning.tuned_blocks import ALL_BLOCKS
from shared.durable_files import disk_errors, sync_directory
from shared.errors import Conflict, IntegrityError
from shared.file_lock import acquire

MAGIC, MEASURED_MAGIC = b"ZOJRNL\x01\n", b"ZOJRNL\x02\n"
SYNC_EVERY = 8
_LENGTH = struct.Struct("<I")
_MAX_HEADER_BYTES = 1 << 16


class StepFlags(IntFlag):
    """What happened in a step."""

    NONE = 0
    CLIPPED = 1
    SKIPPED = 2


@dataclass(frozen=True, slots=True)
class JournalHeader:
    """What the records belong to.

    Attributes:
        seed: Run seed of the perturbation stream.
        stream: Name of the perturbation stream.
        distribution: Of z.
        sensitive_count: k.
        queries: Queries per step.
        epsilon: ε; 0 where it is a share of the values' size, and where there is none.
        bundle_digest: The bundle that was tuned.
        settings_digest: Everything else that decides the run: data, template, schedule, batches.
        blocks: Which decoder blocks are tuned: ``all`` or ``upper:N``; k counts their values.
        is_measured: Whether records hold signal and curvature; the file's version says so, not its JSON.
    """

    seed: int
    stream: str
    distribution: str
    sensitive_count: int
    queries: int
    epsilon: float
    bundle_digest: str
    settings_digest: str
    blocks: str = ALL_BLOCKS
    is_measured: bool = False

    def to_bytes(self) -> bytes:
        """Return magic, length, JSON and crc32."""
        fields = asdict(self)
        magic = MEASURED_MAGIC if fields.pop("is_measured") else MAGIC
        text = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
        return magic + _LENGTH.pack(len(text)) + text + _LENGTH.pack(zlib.crc32(text))


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step.

    Attributes:
        step: Its number, from 0.
        lr: η applied; 0 where the step was skipped.
        clean_loss: Mean of the losses of both signs over all queries, nats per answer.
        flags: What happened.
        gradients: g of each query.
        signal: What it measured of ‖ḡ‖²; NaN where nothing was.
        curvature: What it measured of tr(H); NaN where nothing was.
    """

    step: int
    lr: float
    clean_loss: float
    flags: StepFlags
    gradients: tuple[float, ...]
    signal: float = math.nan
    curvature: float = math.nan


class Journal:
    """An open journal: its records so far, and a place to append.

    Use as a context manager; made by ``open_journal``.

    Attributes:
        damaged_steps: How many records were cut because one of them is damaged; a torn one is not counted.
    """

    def __init__(
        self, path: Path, descriptor: int, header: JournalHeader, records: list[StepRecord], damaged_steps: int = 0
    ) -> None:
        self.path = path
        self.header = header
        self.records = records
        self.damaged_steps = damaged_steps
        self._descriptor = descriptor
        self._layout = _record_layout(header)
        self._unsynced = 0

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    def append(self, record: StepRecord) -> None:
        """Append the record of the next step.

        Raises:
            DiskError: The disk is full or not writable; the journal ends with the last whole record.
        """
        if record.step != len(self.records):
            raise ValueError(f"step {record.step} follows {len(self.records)} records")
        with disk_errors(self.path):
            _write_all(self._descriptor, _pack(record, self._layout, is_measured=self.header.is_measured))
        self.records.append(record)
        self._unsynced += 1
        if self._unsynced >= SYNC_EVERY:
            self.sync()

    def cut(self, count: int) -> None:
        """Keep the first ``count`` records alone.

        Raises:
            DiskError: The disk failed.
        """
        if count >= len(self.records):
            return
        size = self._layout.size + _LENGTH.size
        with disk_errors(self.path):
            os.ftruncate(self._descriptor, len(self.header.to_bytes()) + count * size)
            os.fsync(self._descriptor)
        del self.records[count:]

    def sync(self) -> None:
        """Flush the records to the disk.

        Raises:
            DiskError: The disk failed.
        """
        with disk_errors(self.path):
            os.fsync(self._descriptor)
        self._unsynced = 0


def open_journal(path: Path, header: JournalHeader) -> Journal:
    """Open the run's journal, making it where there is none; a torn tail is cut.

    Only one process may have it open.

    Raises:
        Conflict: Another process has it open, or it belongs to another bundle or other settings.
        IntegrityError: The file is not a journal.
        DiskError: The disk is full or not writable.
    """
    with disk_errors(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        busy = Conflict(
            f"another zo-device is tuning {path.parent}", next_step="wait for it, or choose another --output"
        )
        acquire(descriptor, busy=busy)
        data = path.read_bytes()
        begin = header.to_bytes()
        if len(data) < len(begin) and begin.startswith(data):
            with disk_errors(path):
                os.ftruncate(descriptor, 0)
                _write_all(descriptor, begin)
                os.fsync(descriptor)
                sync_directory(path.parent)
            return Journal(path, descriptor, header, [])
        found, end, records = _parse(data, path)
        if found.stream != header.stream and found.distribution == header.distribution:
            raise Conflict(
                f"{path.parent} holds a run that another version of zo-device began: its perturbations are "
                f"{found.stream}",
                needed=header.stream,
                next_step="finish it with that version, or choose another folder with --output",
            )
        if found != header:
            raise Conflict(
                f"{path.parent} holds a run with another {_difference(found, header)}",
                next_step="repeat the command that began it, or choose another folder with --output",
            )
        if end < len(data):
            with disk_errors(path):
                os.ftruncate(descriptor, end)
                os.fsync(descriptor)
        return Journal(path, descriptor, header, records, _damaged_steps(data, end, header))
    except BaseException:
        os.close(descriptor)
        raise


def read_journal(path: Path) -> tuple[JournalHeader, list[StepRecord]]:
    """Return header and records of a journal without changing it; a torn one at the end is passed over.

    Raises:
        IntegrityError: The file is not a journal, or a record in it is damaged.
    """
    data = path.read_bytes()
    header, end, records = _parse(data, path)
    if _damaged_steps(data, end, header):
        raise IntegrityError(
            f"{path} is damaged after step {len(records)}",
            next_step="run the same tune command again: it makes the steps behind it again",
        )
    return header, records


def _damaged_steps(data: bytes, end: int, header: JournalHeader) -> int:
    """Return how many records would fit behind the whole ones: a damaged one and those after it."""
    return (len(data) - end) // (_record_layout(header).size + _LENGTH.size)


def _write_all(descriptor: int, data: bytes) -> None:
    """Write all bytes; where the disk fills up in the middle it raises, and the torn tail is cut at the next open."""
    while data:
        data = data[os.write(descriptor, data) :]


def _record_layout(header: JournalHeader) -> struct.Struct:
    return struct.Struct(f"<IffH{2 * header.is_measured + header.queries}f")


def _pack(record: StepRecord, layout: struct.Struct, *, is_measured: bool) -> bytes:
    measured = (record.signal, record.curvature) if is_measured else ()
    body = layout.pack(record.step, record.lr, record.clean_loss, record.flags, *measured, *record.gradients)
    return body + _LENGTH.pack(zlib.crc32(body))


def _parse(data: bytes, path: Path) -> tuple[JournalHeader, int, list[StepRecord]]:
    """Return the header, where the whole records end, and the records."""
    header, begin = _parse_header(data, path)
    layout = _record_layout(header)
    size = layout.size + _LENGTH.size
    records: list[StepRecord] = []
    for end in range(begin + size, len(data) + 1, size):
        body = data[end - size : end - _LENGTH.size]
        step, lr, clean_loss, flags, *numbers = layout.unpack(body)
        if _LENGTH.unpack(data[end - _LENGTH.size : end])[0] != zlib.crc32(body) or step != len(records):
            break
        signal, curvature = numbers[:2] if header.is_measured else (math.nan, math.nan)
        gradients = tuple(numbers[2 * header.is_measured :])
        records.append(StepRecord(step, lr, clean_loss, StepFlags(flags), gradients, signal, curvature))
    return header, begin + size * len(records), records


def _parse_header(data: bytes, path: Path) -> tuple[JournalHeader, int]:
    fault = IntegrityError(
        f"{path} is not a journal of this version, or its header is damaged",
        next_step="move that folder away and tune again, or choose another --output",
    )
    begin = len(MAGIC) + _LENGTH.size
    if not data.startswith((MAGIC, MEASURED_MAGIC)) or len(data) < begin:
        raise fault
    (length,) = _LENGTH.unpack(data[len(MAGIC) : begin])
    end = begin + length
    if length > _MAX_HEADER_BYTES or len(data) < end + _LENGTH.size:
        raise fault
    text = data[begin:end]
    if _LENGTH.unpack(data[end : end + _LENGTH.size])[0] != zlib.crc32(text):
        raise fault
    try:
        header = JournalHeader(**json.loads(text), is_measured=data.startswith(MEASURED_MAGIC))
        return header, end + _LENGTH.size
    except (TypeError, ValueError) as error:
        raise fault from error


def _difference(found: JournalHeader, wanted: JournalHeader) -> str:
    names: Sequence[str] = [name for name, value in asdict(found).items() if value != asdict(wanted)[name]]
    return ", ".join(names).replace("_", " ")
