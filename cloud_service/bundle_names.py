"""Names of bundles: the one that a model gets by itself, and patterns of names that a key may publish to.

A pattern is a name in which ``*`` stands for any letters, slashes too: ``team/*``, ``*-draft``, ``*``. Patterns of tags
follow the same rule. Costs nothing. Knows nothing about keys or the database.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

from shared.api import SIGNATURE_SUFFIX, TAG_PATTERN
from shared.errors import InvalidRequest

_NAME_PATTERN = re.compile(r"[a-z0-9*][a-z0-9*._/-]{0,199}")


def bundle_name(model_id: str) -> str:
    """Return the name that a model's bundle is published under by default."""
    parts = (re.sub(r"[^a-z0-9]+", "-", part).strip("-") for part in model_id.lower().split("/"))
    return "/".join(part for part in parts if part) or "model"


def check_name_patterns(patterns: Iterable[str], *, param: str) -> None:
    """Do nothing where all are patterns of bundle names.

    Raises:
        InvalidRequest: One is not; ``param`` names the option.
    """
    for pattern in patterns:
        if not _NAME_PATTERN.fullmatch(pattern):
            raise InvalidRequest(
                f"{pattern[:80]!r} is not a pattern of bundle names",
                needed="lower-case letters, digits, '.', '_', '-', '/' and '*' for any letters, such as 'team/*'",
                param=param,
            )


def check_tag(tag: str) -> None:
    """Do nothing where a bundle may have that tag.

    Raises:
        InvalidRequest: It is malformed, or looks like the tag of a signature.
    """
    if not re.fullmatch(TAG_PATTERN, tag) or tag.endswith(SIGNATURE_SUFFIX):
        raise InvalidRequest(
            f"tag {tag[:80]!r}",
            needed=f"letters, digits, '.', '_' and '-', not ending in {SIGNATURE_SUFFIX}",
            param="tag",
        )


def matches_any(name: str, patterns: Iterable[str]) -> bool:
    """Whether a name, or a tag, fits at least one of the patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)
