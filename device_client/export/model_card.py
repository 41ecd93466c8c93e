"""The README.md of an exported folder: where the weights come from, and what they may say about somebody's data.

A function of bundle and run: holds neither a time nor a machine nor a path. Names of labels stand in a run's
configuration and are left out here; so is the command of a checker.
"""

from __future__ import annotations

import re
from typing import Any

from device_client.export.subject import Subject, TunedRun
from shared.bundle.config import BundleConfig
from shared.version import VERSION

PRIVATE = (
    "The tuned values are functions of the rows that the model was tuned on. Rows cannot be read in them directly, but "
    "who has the model can test guesses about them. Give it only to people who may know the rows."
)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_LICENSE = re.compile(r"[\w.+-]{1,64}", re.ASCII)


def model_card(subject: Subject, form: str) -> str:
    """Return the text.

    Args:
        subject: What was exported.
        form: What of it lies in the folder, for example ``Decoded weights (float16)``.
    """
    config = subject.bundle.config
    parts = [
        _front_matter(config),
        f"# {subject.name}\n",
        f"{form}, exported by zo-device {VERSION}.\n",
        "## Where it comes from\n",
        _table(_provenance(subject)),
    ]
    if subject.tuned is not None:
        parts += ["## How it was tuned\n", _table(_settings(subject.tuned))]
        if results := _results(subject.tuned.result):
            parts += ["## What it came to\n", results]
        parts += ["## Private data\n", PRIVATE + "\n"]
    return "\n".join(parts)


def _front_matter(config: BundleConfig) -> str:
    lines = ["library_name: transformers", "pipeline_tag: text-generation", "tags: [zo-device]"]
    if config.source.license and _LICENSE.fullmatch(config.source.license):
        lines.append(f"license: {config.source.license}")
    if _HUB_ID.fullmatch(config.source.id):
        lines.append(f"base_model: {config.source.id}")
    return "\n".join(["---", *lines, "---", ""])


def _provenance(subject: Subject) -> dict[str, object]:
    config = subject.bundle.config
    quantizer = config.quantizer
    rows: dict[str, object] = {
        "base model": config.source.id,
        "revision": config.source.revision,
        "bundle": subject.bundle.digest,
        "weights of the blocks": f"{quantizer.bits} bits ({quantizer.method}), decoded",
        "sensitive values": f"{config.sensitive_count:,}, in 16 bits",
    }
    if config.embedding_tensors:
        rows["embeddings"] = f"{config.embedding_tensors[0].bits} bits, decoded"
    for name in ("perplexity_16bit", "perplexity_bundle"):
        if name in config.quality:
            rows[name.replace("_", " ")] = f"{config.quality[name]:.4g}"
    return rows


def _settings(tuned: TunedRun) -> dict[str, object]:
    settings = tuned.config["settings"]
    kept = ("gradient", "batch_size", "epsilon", "lr", "step_length", "decay", "queries", "seed", "metric", "objective")
    rows: dict[str, object] = {
        "method": tuned.part.method.name,
        "blocks": tuned.part.blocks.name,
        "tuned values": f"{tuned.part.value_count:,}",
        "steps": f"{settings.get('steps')}, of which the best after {tuned.result.get('best_step', '?')}",
    }
    rows |= {name.replace("_", " "): settings.get(name) for name in kept}
    rows |= {f"{part} rows": count for part, count in tuned.config.get("row_counts", {}).items()}
    return rows


def _results(result: dict[str, Any]) -> str:
    lines = []
    for part in ("validation", "test"):
        for stage, found in result.get(part, {}).items():
            figures = [found.get("loss"), found.get("accuracy"), found.get("score")]
            cells = ["" if figure is None else f"{figure:.4f}" for figure in figures]
            lines.append(f"| {part} | {stage.replace('_', ' ')} | {' | '.join(cells)} | {found.get('rows', '')} |")
    if not lines:
        return ""
    head = ["| rows | values | loss | accuracy | score | count |", "|---|---|---|---|---|---|"]
    return "\n".join([*head, *lines, ""])


def _table(rows: dict[str, object]) -> str:
    cells = {name: _cell(value) for name, value in rows.items() if value is not None}
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in cells.items()), ""])


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
