"""What ``--help`` calls an option's value, where the option fills a field of another name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def named_by_option(option: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return argparse settings whose value is named after the option, unless they name it or list choices."""
    return dict(settings) if "choices" in settings else {"metavar": option.lstrip("-").upper(), **settings}
