"""Reads texts as a stream of documents.

    c4        C4-en, streamed from the hub by ``datasets``
    folder    the same layout on this machine (a ``datasets`` repository with a configuration ``en``)
    .jsonl    one JSON object per line, key ``text``
    .txt      documents are separated by blank lines

C4 is public, so the hub token, which may belong to a private mirror, is never sent for it. ``datasets`` reads the hub
that the variable HF_ENDPOINT names; the service sets it for its jobs to ``hub_endpoint``.

Documents that are empty or blank are left out. Costs no memory beyond one document. Knows nothing about tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from cloud_service.pipeline.hub import TransportError, first_line
from cloud_service.sources import SourcePolicy, TextSource
from shared.errors import DataError, NetworkError

_C4_REPOSITORY = "allenai/c4"


def read_documents(text: TextSource, policy: SourcePolicy) -> Iterator[str]:
    """Yield the documents of a text in order.

    Raises:
        DataError: A line is no JSON object with a ``text``, or the file is not UTF-8; the message names the line.
        NetworkError: C4 cannot be reached.
    """
    if text.path is None or text.path.is_dir():
        documents = _dataset_documents(text, policy)
    elif text.path.suffix == ".jsonl":
        documents = _json_lines(text.path)
    else:
        documents = _paragraphs(text.path)
    return (document for document in documents if document.strip())


def _dataset_documents(text: TextSource, policy: SourcePolicy) -> Iterator[str]:
    import datasets  # importing it takes seconds and is needed for this one kind of text

    if text.path is None and policy.is_offline:
        raise NetworkError(
            "C4 is on the hub, and this preparation is offline",
            needed="a local text",
            next_step="name a .jsonl or .txt file as the calibration text",
        )
    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(str(text.path or _C4_REPOSITORY), "en", split="train", streaming=True, token=False)
        for row in rows:
            yield str(row["text"])
    except (OSError, TransportError, datasets.exceptions.DatasetsError) as error:
        raise NetworkError(
            f"C4 cannot be read: {first_line(error)}",
            needed="a hub that answers",
            next_step="try again, or name a local .jsonl or .txt file: --calibration-text, --evaluation-text",
        ) from error
    except (ValueError, KeyError) as error:
        raise DataError(
            f"{text.name}: {error}",
            needed="a folder laid out as C4 is: a dataset with a configuration en, column text",
            next_step="name a .jsonl or .txt file, or say which task's rows they are: --calibration-task",
        ) from error


def _json_lines(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                document = json.loads(line)["text"]
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                found = f"{path.name} line {number}: no JSON object with a text"
                raise DataError(found, needed='{"text": "…"}', param="calibration.text") from error
            if not isinstance(document, str):
                raise DataError(f"{path.name} line {number}: text is {type(document).__name__}", needed="a string")
            yield document


def _paragraphs(path: Path) -> Iterator[str]:
    lines: list[str] = []
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                if line.strip():
                    lines.append(line)
                elif lines:
                    yield "".join(lines)
                    lines = []
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name} is not UTF-8: {error.reason}", needed="UTF-8 text") from error
    if lines:
        yield "".join(lines)
