"""Stores the documents of a bundle, beside its tensors.

    tokenizer.json · generation_config.json · LICENSE · README.md · report.json

Nothing becomes visible: the caller signs the manifest and tags bundle and signature at once. Every document is a
function of the input alone (no time, no path, no machine), so the same input gives the same digest.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cloud_service.contained_folder import MAX_DOCUMENT_BYTES, ContainedFolder
from cloud_service.pipeline.model.weight_files import read_json
from shared.bundle.config import SourceModel
from shared.bundle.layout import ImageLayout
from shared.bundle.manifest import JSON_MEDIA_TYPE, REPORT_TITLE, TEXT_MEDIA_TYPE, TOKENIZER_TITLE, Descriptor
from shared.bundle.write import add_document

_GENERATION_KEYS = (
    "bos_token_id", "do_sample", "eos_token_id", "max_new_tokens", "min_p", "pad_token_id", "repetition_penalty",
    "temperature", "top_k", "top_p",
)  # fmt: skip
_MAX_DOCUMENT_BYTES = 1024 * 1024


def add_documents(
    layout: ImageLayout, folder: Path, *, tokenizer_json: bytes, report: Mapping[str, Any], model_card: str
) -> list[Descriptor]:
    """Store the documents of the bundle, in the order of their titles.

    Args:
        layout: Where to.
        folder: The checkpoint: its licence and generation settings are taken over.
        tokenizer_json: The tokenizer.
        report: What was measured.
        model_card: Text of README.md.

    Raises:
        UnsupportedModel: The licence or the generation settings cannot be read inside the folder.
        DiskError: The disk is full or not writable.
    """
    documents = {
        TOKENIZER_TITLE: (tokenizer_json, JSON_MEDIA_TYPE),
        REPORT_TITLE: (json.dumps(report, sort_keys=True, indent=1).encode(), JSON_MEDIA_TYPE),
        "README.md": (model_card.encode(), TEXT_MEDIA_TYPE),
    }
    files = ContainedFolder(folder)
    if (settings := _generation_settings(files)) is not None:
        documents["generation_config.json"] = (settings, JSON_MEDIA_TYPE)
    for name in (name for name in files.names() if name.startswith("LICENSE")):
        licence = files.read(name, max_bytes=MAX_DOCUMENT_BYTES)
        if len(licence) <= _MAX_DOCUMENT_BYTES:
            documents["LICENSE"] = (licence, TEXT_MEDIA_TYPE)
    return [add_document(layout, title, data, media) for title, (data, media) in sorted(documents.items())]


def license_of(folder: Path) -> str | None:
    """Return the licence that the front matter of the checkpoint's README.md states, or None.

    Raises:
        UnsupportedModel: README.md is not a regular file inside the folder, or is too long.
    """
    files = ContainedFolder(folder)
    if not files.has("README.md"):
        return None
    card = files.read("README.md", max_bytes=MAX_DOCUMENT_BYTES)
    if len(card) > _MAX_DOCUMENT_BYTES:
        return None
    text = card.decode("utf-8", errors="replace").replace("\r\n", "\n")
    front = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    stated = dict(
        re.findall(r"^(license|license_name):[ \t]*['\"]?([\w.+-]+)", front[1] if front else "", re.MULTILINE)
    )
    return stated.get("license_name") if stated.get("license") == "other" else stated.get("license")


def model_card(source: SourceModel, report: Mapping[str, Any]) -> str:
    """Return the text of the bundle's README.md."""
    mask, quantizer, perplexity = report["mask"], report["quantizer"], report["perplexity"]
    lines = [
        f"# {source.id}, prepared for zo-device",
        "",
        f"* Base model: {source.id}" + (f" at {source.revision}" if source.revision else ""),
        *_baseline_line(source),
        f"* Licence of the base model: {source.license or 'not stated; see the base model'}",
        _dense_line(quantizer),
        *(f"* `{table['name']}`: {table['bits']}-bit codes" for table in report.get("embeddings", [])),
        f"* Sensitive part: {mask['sensitive_count']} weights in float16, chosen by {mask['source']} ({mask['scope']})",
        f"* Calibration text: {mask['calibration_text']}, {mask['calibration_sequences']} sequences",
    ]
    if family := report.get("untested_family"):
        lines.append(
            f"* **Untested**: nobody tests models of the family `{family}`; compare its answers with the original's"
        )
    if perplexity:
        lines.append(
            f"* Perplexity on {perplexity['documents']} held-out documents of {perplexity['text']}: "
            f"{perplexity['16bit']:.3f} in 16 bits, {perplexity['bundle']:.3f} as this bundle"
        )
    return "\n".join([*lines, "", "Made for `zo-device tune`: only the sensitive values are trained.", ""])


def _dense_line(quantizer: Mapping[str, Any]) -> str:
    if quantizer["method"] == "source":
        return "* Dense part: the 4-bit codes of that file, exactly; where it has others, `uniform` in groups of 32"
    compensation = f", errors compensated by `{quantizer['compensation']}`" if quantizer["compensation"] else ""
    return f"* Dense part: {quantizer['bits']}-bit `{quantizer['method']}`{compensation}"


def _baseline_line(source: SourceModel) -> list[str]:
    if (file := source.dequantized_from) is None:
        return []
    return [f"* 16-bit baseline: dequantised {file.types_line} of {file.file}, {file.digest}"]


def _generation_settings(folder: ContainedFolder) -> bytes | None:
    if not folder.has("generation_config.json"):
        return None
    stated = read_json(folder, "generation_config.json")
    settings = {key: value for key, value in stated.items() if key in _GENERATION_KEYS and _is_number(value)}
    return json.dumps(settings, sort_keys=True).encode()


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) or (isinstance(value, list) and all(type(item) is int for item in value))
