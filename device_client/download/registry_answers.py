"""The documents that a registry answers with, apart from manifests and blobs: lists, and errors made printable.

Fields that are not read here are ignored: every registry adds its own.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel, Field, ValidationError

from shared.bundle.digest import Digest
from shared.errors import NetworkError

if TYPE_CHECKING:
    from device_client.download.transport import Response

_MAX_PROBLEM_BYTES = 8192
_NEEDED_OR_NEXT = re.compile(r"(?:^|\n)(?:Needed|Next): ")

Answered = TypeVar("Answered", bound=BaseModel)


class IndexEntry(BaseModel):
    """One manifest of an image index."""

    digest: Digest
    artifact_type: str = Field("", alias="artifactType")


class ImageIndex(BaseModel):
    """The part of an image index that is read; everything else is ignored."""

    manifests: list[IndexEntry]


class TagList(BaseModel):
    """A list of tags, null where there is none."""

    tags: list[str] = []


class _OciError(BaseModel):
    """One error of the OCI distribution API."""

    code: str = ""
    message: str = ""


class _ErrorBody(BaseModel):
    """The parts of an error's body that are shown; everything else is ignored."""

    title: str = ""
    detail: str = ""
    errors: list[_OciError] = []


def parse_answer(model: type[Answered], data: bytes, url: str) -> Answered:
    """Return what a server answered to a URL.

    Raises:
        NetworkError: It is something else.
    """
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        raise NetworkError(
            f"{url.partition('?')[0]} answers with something else than what was asked for",
            needed="an answer of the OCI distribution API, or of a zo-cloud service",
            next_step="check the address of the server",
        ) from error


def problem_detail(answer: Response) -> str:
    """Return what the body of an error says was found, made safe to print; empty where it says nothing.

    What the server needs and what to do next is said to those who call it themselves: with routes and headers. People
    here get the next step of a device, and one alone.
    Our service answers with a problem (RFC 9457), other registries with the errors of the OCI distribution API.
    """
    data = b""
    for piece in answer.body:
        data += piece
        if len(data) > _MAX_PROBLEM_BYTES:
            return ""
    try:
        said = _ErrorBody.model_validate_json(data)
    except ValidationError:
        return ""
    first = said.errors[0] if said.errors else _OciError()
    text = said.detail or said.title or ": ".join(part for part in (first.code, first.message) if part)
    found = _NEEDED_OR_NEXT.split(text, maxsplit=1)[0]
    shown = "".join(letter if letter.isprintable() else " " for letter in found)
    return f": {shown[:500]}" if shown else ""
