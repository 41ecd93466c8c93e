"""Reads texts as a stream of documents.

    c4        C4-en, streamed from the hub by ``datasets``
    folder    the data files of the same layout on this machine: en/*.json.gz, or .json, .jsonl, .jsonl.gz, .parquet
    .jsonl    one JSON object per line, key ``text``
    .txt      documents are separated by blank lines

C4 is public, so the hub token, which may belong to a private mirror, is never sent for it. ``datasets`` reads the hub
that the variable HF_ENDPOINT names; the service sets it for its jobs to ``hub_endpoint``. Of a folder only data files
inside it are opened, found by their names: what its README.md, a script or a link says about other places counts for
nothing.

Documents that are empty or blank are left out. Costs no memory beyond one document, which may have 64 MiB. Knows
nothing about tokens.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from io import BufferedIOBase
from pathlib import Path

from cloud_service.contained_folder import ContainedFile, ContainedFolder
from cloud_service.pipeline.model.hub import TransportError, first_line
from cloud_service.sources import C4, SourcePolicy, TextSource
from shared.errors import DataError, NetworkError
from shared.strict_json import parse_json
from shared.tasks.datasets import Record, parse_records

_C4_REPOSITORY = "allenai/c4"
_DATA_SUFFIXES = (".json.gz", ".jsonl.gz", ".json", ".jsonl", ".parquet")
_MAX_DOCUMENT_BYTES = 64 * 1024 * 1024
_MAX_ROWS_BYTES = 1024 * 1024 * 1024


def read_documents(text: TextSource, policy: SourcePolicy) -> Iterator[str]:
    """Yield the documents of a text in order.

    Raises:
        DataError: A line is not a JSON object with a ``text``, or the file is not UTF-8; the message names the line.
            Or a file is a link out of its folder, or not a regular file.
        NetworkError: C4 cannot be reached.
    """
    if text.path is None:
        documents = _c4_documents(policy)
    elif text.path.is_dir():
        documents = _folder_documents(text.path)
    elif text.path.suffix == ".jsonl":
        documents = _file_documents(text.path, _json_lines)
    else:
        documents = _file_documents(text.path, _paragraphs)
    return (document for document in documents if document.strip())


def open_text(path: Path, *, max_bytes: int | None = None) -> AbstractContextManager[ContainedFile]:
    """Open a file of text or rows whose path ``sources`` has resolved, where it still lies there itself.

    Raises:
        DataError: It has become a link, or is not a regular file, or is longer than ``max_bytes``.
    """
    return _text_folder(path.parent).open(path.name, max_bytes=max_bytes)


def read_rows(path: Path) -> list[Record]:
    """Return the rows of a .jsonl, .csv or .tsv file, opened as ``open_text`` does.

    Raises:
        DataError: The file cannot be opened, is longer than 1 GiB, or a line cannot be parsed.
    """
    with open_text(path, max_bytes=_MAX_ROWS_BYTES) as file, file.stream() as stream:
        return parse_records(path, stream.read(_MAX_ROWS_BYTES))


def text_folder_files(path: Path) -> tuple[ContainedFolder, list[str]]:
    """Return a folder of texts and the names of the data files in it that are read, in order.

    They lie in ``en`` where there is one, as on the hub, else in the folder itself. Where names say ``train``, only
    those are taken.

    Raises:
        DataError: There is no data file, or ``en`` leads out of the folder.
    """
    folder = _text_folder(path)
    place = "en" if folder.has("en") else ""
    files = [f"{place}/{name}" if place else name for name in folder.names(place) if name.endswith(_DATA_SUFFIXES)]
    files = [name for name in files if "train" in name] or files
    if not files:
        raise DataError(
            f"{path.name} holds no data files",
            needed=f"a folder laid out as C4 is: files in en/ that end in {', '.join(_DATA_SUFFIXES)}",
            next_step="name a .jsonl or .txt file, or say which task's rows they are: --calibration-task",
        )
    return folder, files


def _text_folder(path: Path) -> ContainedFolder:
    return ContainedFolder(path, error=DataError, what="folder of texts")


def _c4_documents(policy: SourcePolicy) -> Iterator[str]:
    import datasets  # importing it takes seconds and is needed for this one kind of text

    if policy.is_offline:
        raise NetworkError(
            "C4 is on the hub, and this preparation is offline",
            needed="a local text",
            next_step="name a .jsonl or .txt file, or let the model write the text: --calibration-text self",
        )
    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(_C4_REPOSITORY, "en", split="train", streaming=True, token=False)
        for row in rows:
            yield str(row["text"])
    except (OSError, TransportError, datasets.exceptions.DatasetsError) as error:
        raise NetworkError(
            f"C4 cannot be read: {first_line(error)}",
            needed="a hub that answers",
            next_step="try again, name a local .jsonl or .txt file (--calibration-text, --evaluation-text), or let the "
            "model write the text: --calibration-text self",
        ) from error
    except (ValueError, KeyError) as error:
        raise DataError(f"{C4}: {error}", needed="rows with the column text", next_step="name a local text") from error


def _folder_documents(path: Path) -> Iterator[str]:
    folder, names = text_folder_files(path)
    for name in names:
        with folder.open(name) as file:
            if name.endswith(".parquet"):
                yield from _parquet_texts(file)
            else:
                yield from _json_lines(file)


def _file_documents(path: Path, read: Callable[[ContainedFile], Iterator[str]]) -> Iterator[str]:
    with open_text(path) as file:
        yield from read(file)


def _json_lines(file: ContainedFile) -> Iterator[str]:
    with _uncompressed(file) as stream:
        for number, line in enumerate(_lines(file.name, stream), start=1):
            if not line.strip():
                continue
            yield _text_of(line, f"{file.name} line {number}")


def _text_of(line: bytes, place: str) -> str:
    try:
        document = parse_json(line)
    except UnicodeDecodeError as error:
        raise _not_utf8(place, line) from error
    except ValueError as error:
        found = f"{place}: not a JSON object with a text: {error}"
        raise DataError(found, needed='{"text": "…"}', param="calibration.text") from error
    if not isinstance(document, dict) or "text" not in document:
        has = (
            f", but with {', '.join(map(repr, list(document)[:4]))}" if isinstance(document, dict) and document else ""
        )
        found = f"{place}: not a JSON object with a text{has}"
        raise DataError(found[:300], needed='{"text": "…"}', param="calibration.text")
    if not isinstance(document["text"], str):
        raise DataError(f"{place}: text is {type(document['text']).__name__}", needed="a string")
    return document["text"]


def _not_utf8(place: str, line: bytes) -> DataError:
    is_wide = line.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in line
    encoding = "UTF-16" if is_wide else "LATIN1"
    return DataError(
        f"{place} is not UTF-8" + (": it looks like UTF-16" if is_wide else ""),
        needed="UTF-8",
        next_step=f"save the file as UTF-8, for example: iconv -f {encoding} -t UTF-8 OLD > NEW",
        param="calibration.text",
    )


@contextmanager
def _uncompressed(file: ContainedFile) -> Iterator[BufferedIOBase]:
    with file.stream() as stream:
        if file.name.endswith(".gz"):
            with gzip.GzipFile(fileobj=stream) as uncompressed:
                yield uncompressed
        else:
            yield stream


def _lines(name: str, stream: BufferedIOBase) -> Iterator[bytes]:
    try:
        while line := stream.readline(_MAX_DOCUMENT_BYTES + 1):
            if len(line) > _MAX_DOCUMENT_BYTES:
                raise DataError(f"{name} holds a line of more than {_MAX_DOCUMENT_BYTES} bytes", needed="shorter lines")
            yield line
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{name} is damaged: {error}", needed="a complete gzip file") from error


def _parquet_texts(file: ContainedFile) -> Iterator[str]:
    import datasets

    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset("parquet", data_files=[str(file.path)], split="train", streaming=True, token=False)
        for row in rows:
            yield str(row["text"])
    except (datasets.exceptions.DatasetsError, OSError, ValueError, KeyError) as error:
        raise DataError(f"{file.name}: {first_line(error)}", needed="a Parquet file with the column text") from error


def _paragraphs(file: ContainedFile) -> Iterator[str]:
    lines: list[str] = []
    size = 0
    try:
        with io.TextIOWrapper(file.stream(), encoding="utf-8-sig") as text:
            while line := text.readline(_MAX_DOCUMENT_BYTES):
                if line.strip():
                    lines.append(line)
                    size += len(line)
                elif lines:
                    yield "".join(lines)
                    lines, size = [], 0
                if size >= _MAX_DOCUMENT_BYTES:
                    raise DataError(
                        f"{file.name} holds a document of more than {_MAX_DOCUMENT_BYTES} characters",
                        needed="documents separated by blank lines",
                    )
    except UnicodeDecodeError as error:
        raise _not_utf8(*_undecodable_line(file)) from error
    if lines:
        yield "".join(lines)


def _undecodable_line(file: ContainedFile) -> tuple[str, bytes]:
    """Return the place and the bytes of the first line that is not UTF-8; a decoder of whole pieces cannot say it."""
    with file.stream() as stream:
        for number, line in enumerate(_lines(file.name, stream), start=1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return f"{file.name} line {number}", line
    return file.name, b""
