"""Reads rows of data from JSONL, CSV and TSV files with the standard library alone.

Text is UTF-8, with or without a byte order mark, or UTF-16 with one; anything else is refused by file and line. A row
is a set of named fields and the place it was read from; what the fields mean is decided elsewhere. Nothing is cached,
copied or logged, and no error shows a row's content: a message names the file, the line and what is wrong.
Knows nothing about models, templates or tasks.
"""

from __future__ import annotations

import codecs
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.errors import DataError
from shared.perturbation import random_generator
from shared.strict_json import parse_json
from shared.tasks.tables import TableLayout, read_table

_DRAW_STREAM = 1 << 62
"""Step number of the row draw: far above every training step, so that both never share random words."""

_ENDINGS = (".csv", ".jsonl", ".tsv")
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
            DataError: The field is missing, empty or blank.
        """
        if not self.holds(name):
            fault = "is empty" if name in self.fields else "is missing"
            raise DataError(
                f"{self.place}: {name!r} {fault}",
                needed=f"a row with {name!r}; rows are {ROW_FORMATS}",
                next_step="correct or remove that line",
            )
        return self.fields[name]

    def holds(self, name: str) -> bool:
        """Return whether the field is there and neither null, empty nor blank."""
        value = self.fields.get(name)
        return value is not None and not (isinstance(value, str) and not value.strip())


def read_records(path: Path, *, glue: bool = False) -> list[Record]:
    """Return every row of a ``.jsonl``, ``.csv`` or ``.tsv`` file, in order; blank lines are passed over.

    Args:
        path: The file.
        glue: Read a .tsv as GLUE publishes it: the quotation mark is a letter.

    Raises:
        DataError: The file is missing, or as ``parse_records``.
    """
    return parse_records(path, _bytes_of(path), glue=glue)


def parse_records(path: Path, data: bytes, *, glue: bool = False) -> list[Record]:
    """Return every row of the file ``path`` whose content is ``data``; see ``read_records``.

    Raises:
        DataError: The content is empty, neither UTF-8 nor UTF-16 with a byte order mark, the path's ending is not
            served, or a line cannot be parsed.
    """
    text = _text_of(path, data)
    if path.suffix.lower() == ".jsonl":
        records = list(_parse_jsonl(path.name, text))
    else:
        _, rows = read_table(path.name, text, glue=glue)
        records = [Record(fields, f"{path.name} line {line}") for line, fields in rows]
    if not records:
        raise DataError(f"{path} holds no rows", needed=f"at least one row: {ROW_FORMATS}")
    return records


def read_layout(path: Path) -> TableLayout | None:
    """Return how a .csv or .tsv file was read, or None for a file that is not a table.

    Raises:
        DataError: As ``read_records``.
    """
    if path.suffix.lower() == ".jsonl":
        return None
    return read_table(path.name, _text_of(path, _bytes_of(path)))[0]


def _bytes_of(path: Path) -> bytes:
    _check_ending(path)
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}", next_step="check the path given") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", needed="a readable file") from error


def _check_ending(path: Path) -> None:
    if path.suffix.lower() not in _ENDINGS:
        raise DataError(f"{path} has the ending {path.suffix!r}", needed=f"one of {', '.join(_ENDINGS)}")


def _text_of(path: Path, data: bytes) -> str:
    """Decode UTF-8, or UTF-16 where a byte order mark says so; line ends become those of Unix."""
    _check_ending(path)
    is_wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and not data.startswith(codecs.BOM_UTF32_LE)
    try:
        text = data.decode("utf-16" if is_wide else "utf-8-sig")
        if "\0" in text:
            raise _not_text(path, 1 + text[: text.index("\0")].count("\n"), "holds a zero byte", "UTF-16")
    except UnicodeDecodeError as error:
        line = 1 + data[: error.start].count(b"\n")
        coding = "UTF-16" if is_wide else f"UTF-8 (byte {error.start} is not UTF-8)"
        raise _not_text(path, line, f"is not {coding}", "UTF-16" if is_wide or b"\0" in data else "LATIN1") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _not_text(path: Path, line: int, fault: str, likely: str) -> DataError:
    return DataError(
        f"{path} line {line} {fault}",
        needed="UTF-8, or UTF-16 with its byte order mark",
        next_step=f"save the file as UTF-8, for example: iconv -f {likely} -t UTF-8 OLD > NEW",
    )


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


def hold_out(
    records: Sequence[Record], share: float, seed: int, *, strata: Sequence[str] | None = None
) -> tuple[list[Record], list[Record]]:
    """Split off a validation share drawn by ``seed``: (the rest, held out), each in file order.

    Args:
        records: At least two.
        share: 0 … 1.
        seed: Of the draw.
        strata: Label of each row. Each label is then held out by its own share, and keeps at least one row in the
            rest: a label that nothing is learnt of cannot be chosen.

    Raises:
        DataError: One of the two parts would be empty.
    """
    count = round(len(records) * share)
    order: list[int] = random_generator(seed, _DRAW_STREAM, 1).permutation(len(records)).tolist()
    held = set(order[:count] if strata is None else _stratified(order, strata, count))
    if not 0 < len(held) < len(records):
        why = "" if strata is None or not 0 < count < len(records) else ", and each label keeps a row for training"
        raise DataError(
            f"a validation share of {share:g} of {len(records)} rows is {count} rows{why}",
            needed="at least one row for training and one for validation",
            next_step="give more rows, another --validation-share, or --validation FILE",
        )
    rest = [record for index, record in enumerate(records) if index not in held]
    return rest, [records[index] for index in sorted(held)]


def _stratified(order: Sequence[int], strata: Sequence[str], count: int) -> list[int]:
    """Return about ``count`` of the indices: of each label its share, by largest remainder, but never all of them."""
    sizes = Counter(strata)
    shares = {label: size * count / len(strata) for label, size in sizes.items()}
    quotas = {label: min(int(shares[label]), size - 1) for label, size in sizes.items()}
    by_remainder = sorted(sizes, key=lambda label: (int(shares[label]) - shares[label], label))
    for label in by_remainder:
        if sum(quotas.values()) < count and quotas[label] < sizes[label] - 1:
            quotas[label] += 1
    taken = []
    for index in order:
        if quotas[strata[index]] > 0:
            quotas[strata[index]] -= 1
            taken.append(index)
    return taken


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


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null")
