"""The settings of runs as flat names and values, and those in which runs differ. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

_DERIVED = {"settings_digest"}
"""What follows from the other entries."""


def flat_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what config.json says of a run, nested names joined by spaces, in order of names."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if name in _DERIVED:
            continue
        if isinstance(value, Mapping):
            # Names of settings are known; those of other parts need the part's.
            before = "" if name == "settings" else f"{name} "
            flat |= {f"{before}{inner}": found for inner, found in value.items()}
        else:
            flat[name] = value
    return {name.replace("_", " "): flat[name] for name in sorted(flat)}


def differing_settings(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the settings that are not alike in all runs: name → the value of each, None where a run lacks it."""
    tables = [flat_settings(config) for config in configs]
    names = sorted({name for table in tables for name in table})
    found = {name: [table.get(name) for table in tables] for name in names}
    return {name: values for name, values in found.items() if any(value != values[0] for value in values)}


def shown_value(value: Any) -> str:
    """Return a setting's value for people."""
    if value is None:
        return "default"
    if isinstance(value, str):
        return value
    return f"{value:g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
