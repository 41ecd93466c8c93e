"""Strict JSON documents: the form in which manifest, configuration and signatures are written and read.

Frozen pydantic models: unknown fields are refused, so that a reader never ignores what it does not understand, and no
key may occur twice. The same fields give the same bytes. Knows nothing about files.
"""

from __future__ import annotations

import json
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from shared.errors import IntegrityError, LimitExceeded, UpgradeNeeded
from shared.field_errors import first_fault

FORMAT_MAJOR = 1
"""Of the bundles that this version reads."""

DocumentType = TypeVar("DocumentType", bound=BaseModel)


class Document(BaseModel):
    """Base of both documents: strict, frozen, no unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def to_bytes(self) -> bytes:
        """Return the canonical JSON: keys sorted, no spaces, UTF-8, absent optional fields left out."""
        fields = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def parse_document(
    model: type[DocumentType], data: bytes, *, limit: int, what: str, error: type[IntegrityError]
) -> DocumentType:
    """Return a validated JSON document in which no key occurs twice.

    Args:
        model: Its form.
        data: Its bytes.
        limit: The most bytes it may have.
        what: Its name in messages.
        error: What to raise where it has another form.

    Raises:
        LimitExceeded: It is longer than ``limit``.
        IntegrityError: Anything else is wrong with it; the class is ``error``.
    """
    parse_json(data, limit, what, error)
    return validated(model, data, what, error)


def parse_json(data: bytes, limit: int, what: str, error: type[IntegrityError]) -> dict[str, Any]:
    """Return the fields of a JSON object in which no key occurs twice.

    Raises:
        LimitExceeded: It is longer than ``limit``.
        IntegrityError: It is not such an object; the class is ``error``.
    """
    if len(data) > limit:
        raise LimitExceeded(f"{what} of {len(data)} bytes", needed=f"at most {limit} bytes")
    try:
        fields = json.loads(data, object_pairs_hook=_no_duplicates, parse_constant=_no_constants)
    except (ValueError, RecursionError) as problem:
        raise error(f"{what}: {problem}", needed="a JSON object") from problem
    if not isinstance(fields, dict):
        raise error(f"{what}: {type(fields).__name__}", needed="a JSON object")
    return fields


def validated(model: type[DocumentType], data: bytes, what: str, error: type[IntegrityError]) -> DocumentType:
    """Return the document, in its form.

    Raises:
        IntegrityError: It has another form; the class is ``error``.
    """
    try:
        return model.model_validate_json(data)
    except ValidationError as problem:
        fault = first_fault(problem)
        found = fault.found_in(fault.field or "document")
        raise error(f"{what}: {found}", needed=f"{fault.needed}; see shared/bundle/FORMAT.md") from problem


def newer_format(found: str) -> UpgradeNeeded:
    """Return the error of a document that only newer versions read."""
    return UpgradeNeeded(
        found,
        needed=f"a bundle of format {FORMAT_MAJOR}.x, or a newer zo-device",
        next_step="upgrade zo-device: pip install --upgrade 'zo-device[device]'",
    )


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a key occurs twice")
    return fields


def _no_constants(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")
