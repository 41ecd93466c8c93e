"""Reads rows of data from JSONL, CSV and TSV files with the standard library alone.

A row is a set of named fields and the place it was read from; what the fields mean is decided elsewhere. Nothing is
cached, copied or logged, and no error shows a row's content: a message names the file, the line and what is wrong.
Knows nothing about models, templates or tasks.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from shared.errors import DataError
from shared.perturbation import random_generator
from shared.strict_json import parse_json

_DRAW_STREAM = 1 << 62
"""Step number of the row draw: far above every training step, so that both never share random words."""

ROW_FORMATS = '{"text", "label"}, {"prompt", "completion"} or {"messages"}'


@dataclass(frozen=True, slots=True)
class Record:
    """One row.

    Attributes:
        fields: Column or key → value; CSV and TSV values are strings.
        place: Where it was read, for example ``train.jsonl line 3``.
    """

    fields: Mapping[str, Any]
    place: str

    def text(self, name: str) -> str:
        """Return the field as text.

        Raises:
            DataError: The field is missing or no text.
        """
        value = self.field(name)
        if not isinstance(value, str):
            raise DataError(f"{self.place}: {name!r} is {_kind(value)}", needed="text")
        return value

    def field(self, name: str) -> Any:
        """Return the field.

        Raises:
            DataError: The field is missing or empty.
        """
        value = self.fields.get(name)
        if value is None or value == "":
            fault = "is empty" if name in self.fields else "is missing"
            raise DataError(
                f"{self.place}: {name!r} {fault}",
                needed=f"a row with {name!r}; rows are {ROW_FORMATS}",
                next_step="correct or remove that line",
            )
        return value


def read_records(path: Path) -> list[Record]:
    """Return every row of a ``.jsonl``, ``.csv`` or ``.tsv`` file, in order; blank lines are passed over.

    Raises:
        DataError: The file is missing, or as ``parse_records``.
    """
    _parser_of(path)
    try:
        return parse_records(path, path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}", next_step="check the path given") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", needed="a readable file") from error


def parse_records(path: Path, data: bytes) -> list[Record]:
    """Return every row of the file ``path`` whose content is ``data``; see ``read_records``.

    Raises:
        DataError: The content is empty or not UTF-8, the path's ending is not served, or a line cannot be parsed.
    """
    parse = _parser_of(path)
    try:
        text = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig").read()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8", next_step="save the file as UTF-8") from error
    records = list(parse(path.name, text))
    if not records:
        raise DataError(f"{path} holds no rows", needed=f"at least one row: {ROW_FORMATS}")
    return records


def _parser_of(path: Path) -> Callable[[str, str], Iterator[Record]]:
    parse = _PARSERS.get(path.suffix.lower())
    if parse is None:
        raise DataError(f"{path} has the ending {path.suffix!r}", needed=f"one of {', '.join(sorted(_PARSERS))}")
    return parse


def digest_of_rows(records: Sequence[Record]) -> str:
    """Return the sha256 of the rows' content: a run is continued only on the data it began with."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(json.dumps(dict(record.fields), sort_keys=True).encode() + b"\n")
    return f"sha256:{digest.hexdigest()}"


def draw_rows(records: Sequence[Record], count: int | None, seed: int) -> list[Record]:
    """Return ``count`` distinct rows drawn by ``seed``, in the order drawn; all rows in file order where None."""
    if count is None or count >= len(records):
        return list(records)
    order = random_generator(seed, _DRAW_STREAM).permutation(len(records))[:count]
    return [records[index] for index in order]


def hold_out(records: Sequence[Record], share: float, seed: int) -> tuple[list[Record], list[Record]]:
    """Split off a validation share drawn by ``seed``: (the rest, held out), each in file order.

    Raises:
        DataError: One of the two parts would be empty.
    """
    count = round(len(records) * share)
    if not 0 < count < len(records):
        raise DataError(
            f"a validation share of {share:g} of {len(records)} rows is {count} rows",
            needed="at least one row for training and one for validation",
            next_step="give more rows, another --validation-share, or --validation FILE",
        )
    held = set(random_generator(seed, _DRAW_STREAM, 1).permutation(len(records))[:count].tolist())
    rest = [record for index, record in enumerate(records) if index not in held]
    return rest, [records[index] for index in sorted(held)]


def _parse_jsonl(name: str, text: str) -> Iterator[Record]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{name} line {number}"
        try:
            fields = parse_json(line)
        except json.JSONDecodeError as error:
            reason = f"{error.msg} at column {error.colno}"
            raise DataError(f"{place}: {reason}", needed="one JSON object per line") from error
        except ValueError as error:
            raise DataError(f"{place}: {error}", needed="one flat JSON object per line") from error
        if not isinstance(fields, dict):
            raise DataError(f"{place}: {_kind(fields)}", needed="one JSON object per line")
        yield Record(fields, place)


def _parse_table(name: str, text: str, delimiter: str, quoting: Literal[0, 3]) -> Iterator[Record]:
    reader: csv.DictReader[str] = csv.DictReader(io.StringIO(text), delimiter=delimiter, quoting=quoting, strict=True)
    try:
        # Their number alone: where there is no header line, the names are the first row.
        columns = f"{len(reader.fieldnames or ())} columns, as the first line of {name} has"
        for fields in reader:
            place = f"{name} line {reader.line_num}"
            if None in fields or None in fields.values():
                raise DataError(f"{place}: not as many columns as the header has", needed=columns)
            yield Record(fields, place)
    except csv.Error as error:
        line = min(reader.line_num + 1, text.count("\n") + 1)  # the reader counts a line once it is parsed
        raise DataError(f"{name} line {line}: {error}", needed="a table with a header line") from error


def _parse_csv(name: str, text: str) -> Iterator[Record]:
    return _parse_table(name, text, ",", csv.QUOTE_MINIMAL)


def _parse_tsv(name: str, text: str) -> Iterator[Record]:
    # GLUE's files use the quotation mark as an ordinary letter.
    return _parse_table(name, text, "\t", csv.QUOTE_NONE)


_PARSERS: dict[str, Callable[[str, str], Iterator[Record]]] = {
    ".jsonl": _parse_jsonl,
    ".csv": _parse_csv,
    ".tsv": _parse_tsv,
}


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null")
