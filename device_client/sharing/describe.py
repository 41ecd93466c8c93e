"""A finished run as what is shared of it: what it says of itself, and its values or its journal.

A journal is shared only where it makes the very bits of the run's best values again; that is tried here first. The
run's own digest is computed from its rows too, so that a guess about them could be confirmed by it: what is shared has
another one, of its settings and values, and so has the header of its journal. Costs a replay for a journal.
Knows nothing about signatures.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from device_client.export.subject import Subject, TunedRun
from device_client.model.backends.choose import BackendOptions
from device_client.sharing.documents import (
    Content,
    Figures,
    FineTune,
    Rendering,
    SharedSettings,
    Stage,
    Validation,
)
from device_client.sharing.values import pack_values
from device_client.tuning.engines import journal_header
from device_client.tuning.replay import replay, starting_values
from device_client.tuning.run_directory import RunDirectory
from shared.bundle.digest import digest_of_bytes
from shared.errors import Conflict, IntegrityError, InvalidRequest
from shared.field_errors import first_fault

JOURNAL, METRICS = "journal.bin", "metrics.jsonl"


def describe_run(subject: Subject, content: Content, name: str | None = None) -> FineTune:
    """Return what a shared run says of itself.

    Args:
        subject: A run.
        content: What is shared of it.
        name: What it is called; None names it after its model: a run's own name tells of a file of rows.

    Raises:
        InvalidRequest: It is a bundle or unfinished, or its journal is asked for and does not make its values again.
        IntegrityError: The run's record is damaged.
    """
    tuned = subject.needed_run()
    config, result = tuned.config, tuned.result
    origin = tuned.directory.read_json("origin.json") or {}
    digest = _digest_without_rows(tuned)
    if not result:
        raise InvalidRequest(
            f"the run {tuned.directory.name} is not finished",
            needed="a run whose results are known",
            next_step="run its tune command again: it continues",
        )
    if content == "journal":
        _check_replayable(tuned, result)
    snapshot = tuned.directory.read_theta("best.safetensors")
    try:
        return FineTune.model_validate(
            {
                "content": content,
                "name": name or _neutral_name(subject, digest),
                "bundle": subject.bundle.digest,
                "source_model": subject.bundle.config.source.id,
                "best_step": 0 if snapshot is None else snapshot.steps_done,
                "value_count": tuned.part.value_count,
                "settings": SharedSettings.of(config["settings"]),
                "settings_digest": digest,
                "rendering": Rendering.model_validate(config["rendering"]),
                "max_tokens": config.get("max_tokens"),
                "control_tokens": config.get("control_tokens", "tokens"),
                "row_counts": config.get("row_counts", {}),
                "stopped_by": result.get("stopped_by"),
                "steps_done": origin.get("steps_done", result.get("steps_done")),
                "validation": _figures(result, "validation"),
                "test": _figures(result, "test"),
                "validations": _validations(tuned) if content == "journal" else [],
            }
        )
    except ValidationError as error:
        fault = first_fault(error)
        raise IntegrityError(
            f"the record of run {tuned.directory.name}: {fault.found_in(fault.field or 'config.json')}",
            needed=fault.needed,
            next_step="restore config.json and result.json of the run, or tune again",
        ) from error


def _digest_without_rows(tuned: TunedRun) -> str:
    kept = {key: tuned.config.get(key) for key in ("bundle_digest", "settings", "rendering", "max_tokens")}
    return digest_of_bytes(json.dumps(kept, sort_keys=True).encode() + tuned.theta.numpy().tobytes())


def _neutral_name(subject: Subject, digest: str) -> str:
    model = subject.bundle.config.source.id.rpartition("/")[2]
    word = re.sub(r"[^A-Za-z0-9._-]+", "-", model).lstrip("._-")[:80] or "run"
    return f"{word}-{digest.removeprefix('sha256:')[:8]}"


def content_of(subject: Subject, document: FineTune, backend: BackendOptions) -> bytes:
    """Return what the artifact's layer holds.

    Raises:
        Conflict: The journal makes other values than the run's.
        UnsupportedModel: The values are beyond float16.
    """
    tuned = subject.needed_run()
    if document.content == "values":
        return pack_values(tuned.theta, subject.bundle, tuned.part)
    with tempfile.TemporaryDirectory(dir=tuned.directory.path.parent, prefix=".replay-") as folder:
        shutil.copyfile(tuned.directory.path / JOURNAL, Path(folder) / JOURNAL)
        settings = document.settings.as_settings()
        own_digest = str(tuned.config.get("settings_digest"))
        header = journal_header(settings, tuned.part, subject.bundle.digest, own_digest)
        start = starting_values(subject.bundle, tuned.part, settings.seed)
        outcome = replay(RunDirectory(Path(folder)), header, document.evaluations, settings, start, backend)
    if not torch.equal(outcome.best, tuned.theta):
        raise Conflict(
            f"the journal of run {tuned.directory.name} makes other values than the run's best ones",
            needed="a run that this release of zo-device made from the start to the end",
            next_step="share its values: --as values",
        )
    records = (tuned.directory.path / JOURNAL).read_bytes()[len(header.to_bytes()) :]
    return replace(header, settings_digest=document.settings_digest).to_bytes() + records


def _check_replayable(tuned: TunedRun, result: dict[str, Any]) -> None:
    settings = tuned.config["settings"]
    faults = {
        "of exact gradients, which no journal holds": settings.get("gradient") == "first-order",
        "of --method prefix, which begins with what the model computes": tuned.part.method.name == "prefix",
        "that is not finished": result.get("stopped_by") == "time budget",
        "that somebody shared without its journal": not (tuned.directory.path / METRICS).is_file(),
    }
    for fault in (fault for fault, is_so in faults.items() if is_so):
        raise InvalidRequest(
            f"--as journal with a run {fault}",
            needed="a finished run of forward passes, of --method sparse or lora",
            next_step="share its values: --as values",
            param="as",
        )


def _figures(result: dict[str, Any], part: str) -> dict[Stage, Figures]:
    stages: tuple[Stage, ...] = ("bundle", "start", "last", "best")
    found = result.get(part, {})
    return {stage: Figures.of(found[stage]) for stage in stages if stage in found}


def _validations(tuned: TunedRun) -> list[Validation]:
    lines = (line for line in tuned.directory.metrics() if line["kind"] == "validation")
    return [Validation(steps_done=line["steps_done"], figures=Figures.of(line)) for line in lines]
