"""Reads CSV and TSV as spreadsheets and data tools write them, by rules that a person can check.

    header      the first line; blanks around a name do not count, nor does the case of the names in ``FIELD_NAMES``
    separator   of , ; tab and | the one that gives the header the most names of ``FIELD_NAMES``; else by the ending,
                comma for .csv and tab for .tsv; a first line ``sep=;``, as Excel writes it, decides
    quotes      .csv: "…" encloses a field, and "" in it is a quotation mark
                .tsv: the same where that reading has one row for each line, or where only that reading fits the header;
                else a quotation mark is an ordinary letter, as in GLUE's files
    blanks      a blank behind every separator of the header belongs to the separator

Fields may be as long as the file. The parsing is the standard library's ``csv``, in its strict mode. No error shows a
row's content; it shows the names of the columns only where one of them is a known name, for a file without a header
begins with a row. Costs one parse, two for a .tsv that has quotation marks. Knows nothing about what the fields mean.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from shared.errors import DataError

FIELD_NAMES = frozenset({"text", "label", "prompt", "completion"})
_SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a vertical bar"}
_USUAL_SEPARATOR = {".csv": ",", ".tsv": "\t"}
_SHOWN_NAMES = 8
_SHOWN_CHARACTERS = 30


@dataclass(frozen=True, slots=True)
class TableLayout:
    """How a table is written.

    Attributes:
        separator: Between two fields of a line.
        names: Of the columns, as the rows will carry them.
        first_line: Number of the header's line.
        has_quotes: Whether a quotation mark may enclose a field.
        skips_blanks: Whether a blank behind a separator belongs to it.
    """

    separator: str
    names: tuple[str, ...]
    first_line: int = 1
    has_quotes: bool = True
    skips_blanks: bool = False

    def __str__(self) -> str:
        names = f"{len(self.names)} column" + "s" * (len(self.names) != 1)
        if FIELD_NAMES & set(self.names):
            shown = [name[:_SHOWN_CHARACTERS] for name in self.names[:_SHOWN_NAMES]]
            names = f"columns {', '.join(shown)}" + ", …" * (len(self.names) > _SHOWN_NAMES)
        quotes = "quotation marks enclose fields" if self.has_quotes else "quotation marks are letters"
        return f"{names}; separated by {_SEPARATORS.get(self.separator, repr(self.separator))}; {quotes}"


def read_table(name: str, text: str, *, glue: bool = False) -> tuple[TableLayout, list[tuple[int, Mapping[str, str]]]]:
    """Return how a table is written, and its rows with the number of the line where each ends.

    Args:
        name: The file's name; its ending is .csv or .tsv.
        text: Its content.
        glue: Read as GLUE publishes its files: tabs, names as they stand, no quotes.

    Raises:
        DataError: A line is not as the header says, or two columns have one name.
    """
    if glue:
        header = next(csv.reader([_line(text, 0)], delimiter="\t", quoting=csv.QUOTE_NONE), [])
        layout = TableLayout("\t", tuple(header), has_quotes=False)
        return layout, list(_rows(name, text, layout))
    layout = _find_layout(name, text)
    repeated = next((column for column in layout.names if layout.names.count(column) > 1), None)
    if repeated is not None:
        raise DataError(
            f"{name}: two columns have the same name ({layout})", needed="a name of its own for each column"
        )
    if name.lower().endswith(".csv") or '"' not in text:
        return layout, list(_rows(name, text, layout))
    return _by_quotes(name, text, layout)


def _by_quotes(name: str, text: str, layout: TableLayout) -> tuple[TableLayout, list[tuple[int, Mapping[str, str]]]]:
    plain = replace(layout, has_quotes=False)
    try:
        quoted_rows = list(_rows(name, text, layout))
    except DataError:
        return plain, list(_rows(name, text, plain))
    try:
        plain_rows = list(_rows(name, text, plain))
    except DataError:
        return layout, quoted_rows
    return (layout, quoted_rows) if len(quoted_rows) == len(plain_rows) else (plain, plain_rows)


def _find_layout(name: str, text: str) -> TableLayout:
    first = _line(text, 0)
    if first.lower().startswith("sep=") and len(first) == len("sep=x"):
        return _layout_of(_line(text, 1), first[-1], first_line=2)
    usual = _USUAL_SEPARATOR[name[-4:].lower()]
    candidates = [usual, *(separator for separator in _SEPARATORS if separator != usual)]
    layouts = [_layout_of(first, separator, first_line=1) for separator in candidates]
    return max(layouts, key=lambda layout: len(FIELD_NAMES & set(layout.names)))  # the first of equals


def _layout_of(header: str, separator: str, *, first_line: int) -> TableLayout:
    skips_blanks = separator in header and header.count(separator) == header.count(f"{separator} ")
    found = next(csv.reader([header], delimiter=separator, skipinitialspace=skips_blanks), [])
    names = tuple(
        column.strip().lower() if column.strip().lower() in FIELD_NAMES else column.strip() for column in found
    )
    return TableLayout(separator, names, first_line, skips_blanks=skips_blanks)


def _line(text: str, number: int) -> str:
    lines = text.split("\n", number + 1)
    return lines[number] if number < len(lines) else ""


def _rows(name: str, text: str, layout: TableLayout) -> Iterator[tuple[int, Mapping[str, str]]]:
    # The limit of csv's fields is one of the process, 131,072 characters; no field is longer than its file.
    csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=layout.separator, strict=True, skipinitialspace=layout.skips_blanks,
        quoting=csv.QUOTE_MINIMAL if layout.has_quotes else csv.QUOTE_NONE,
    )  # fmt: skip
    before = layout.first_line  # the last line of the row before
    try:
        for _ in range(layout.first_line):
            next(reader, None)
        for fields in reader:
            if not fields:
                continue
            if len(fields) != len(layout.names):
                raise DataError(
                    f"{name} line {reader.line_num}: not as many columns as the header has",
                    needed=f"{len(layout.names)} columns, as the first line of {name} has",
                )
            before = reader.line_num
            yield before, dict(zip(layout.names, fields, strict=True))
    except csv.Error as error:
        raise DataError(
            f"{name} line {before + 1}: {error}", needed=f"a table with a header line ({layout})"
        ) from error


def unknown_columns(names: Sequence[str]) -> str:
    """Return the names of a row's fields for an error message, or their number where they may be a row."""
    if not FIELD_NAMES & {name.strip().lower() for name in names}:
        return f"{len(names)} fields, none of a known name"
    shown = [repr(name[:_SHOWN_CHARACTERS]) for name in names[:_SHOWN_NAMES]]
    return ", ".join(shown) + ", …" * (len(names) > _SHOWN_NAMES)
