"""The fingerprint of an input: equal fingerprints give equal bundles, or equal figures of a study.

    fingerprint = sha256 of canonical JSON {model content, texts' content, settings, version of this pipeline}

A hub model's content is its commit; a local model's, the digests of the files that are read; a GGUF file's, its own
digest. Name, tag and ``force``
are left out: they say where to publish, not what. Costs one read of a local model's files. Knows nothing about torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cloud_service.contained_folder import MAX_DOCUMENT_BYTES, MAX_JSON_BYTES, ContainedFolder
from cloud_service.pipeline.calibration.documents import open_text, text_folder_files
from cloud_service.pipeline.model.folder_kinds import (
    adapter_note,
    refuse_other_kinds,
    refuse_without_safetensors,
    safetensors_among,
)
from cloud_service.pipeline.model.hub import fetch, find_snapshot, is_wanted
from cloud_service.pipeline.model.pinned_commit import pinned_snapshot
from cloud_service.pipeline.named_input import NamedInput
from cloud_service.progress import ProgressSink
from cloud_service.sources import (
    C4,
    GGUF_SUFFIX,
    LocalModel,
    SourcePolicy,
    TextSource,
    locate_calibration,
    locate_model,
    locate_text,
)
from shared.api import Stage
from shared.bundle.digest import digest_of_bytes
from shared.errors import UnsupportedModel

PIPELINE_VERSION = "2"
"""Raised whenever the same input would give another bundle."""


@dataclass(frozen=True, slots=True)
class ResolvedInput:
    """What an input turned out to be.

    Attributes:
        model_id: Hub id, or the base name of a local folder.
        revision: Hub commit, also of a snapshot in a hub's cache; None for any other local model.
        folder: The model's files on this machine.
        gguf_file: Name of the GGUF file in the folder that is the model; None where the folder is.
        gguf_digest: Its digest.
        calibration: Text or task rows of the Fisher pass.
        evaluation: Text of the perplexity report.
        fingerprint: Digest of the whole input.
    """

    model_id: str
    revision: str | None
    folder: Path
    calibration: TextSource
    evaluation: TextSource
    fingerprint: str
    gguf_file: str | None = None
    gguf_digest: str | None = None


def resolve(
    named: NamedInput, policy: SourcePolicy, progress: ProgressSink, *, workspace: Path | None = None
) -> ResolvedInput:
    """Locate, and for a hub model fetch, everything that is named.

    Args:
        named: What to work on.
        policy: What may be read.
        progress: Told about the stages.
        workspace: Keeps a hub model at the commit it had when it was first resolved here; None always asks the hub.

    Raises:
        InvalidModelId, UnsupportedModel, NotFound, Unauthorized, NetworkError: The model; see ``hub``.
        InvalidRequest: A text is not a file that may be read.
        DataError: A folder of texts holds no data files, or a file of a text is a link out of its folder.
    """
    progress.stage(Stage.RESOLVING)
    calibration = locate_calibration(named.calibration, policy)
    default_text = C4 if named.calibration.task else named.calibration.text
    evaluation = locate_text(named.evaluation.text or default_text, policy, param="evaluation.text")
    model = locate_model(named.model, named.revision, policy, gguf_file=named.gguf_file)
    if isinstance(model, LocalModel):
        model = with_only_gguf(model)
        folder, revision = model.folder, model.commit
    else:
        snapshot = find_snapshot(model, policy) if workspace is None else pinned_snapshot(model, policy, workspace)
        folder, revision = fetch(model, snapshot, policy, progress), snapshot.commit
    files, digest = ContainedFolder(folder), None
    if model.gguf_file is not None:
        with files.open(model.gguf_file) as file:
            digest = file.digest()
        content = {"gguf": digest}
    else:
        refuse_other_kinds(files)
        if not safetensors_among(names := files.names()):
            refuse_without_safetensors(names, model.id)
        if (note := adapter_note(files)) is not None:
            progress.note(note)
        content = _folder_content(files) if isinstance(model, LocalModel) else {"commit": str(revision)}
    fingerprint = input_fingerprint(named, {"id": model.id, **content}, calibration, evaluation)
    return ResolvedInput(model.id, revision, folder, calibration, evaluation, fingerprint, model.gguf_file, digest)


def with_only_gguf(model: LocalModel) -> LocalModel:
    """Return the model; a folder whose only weights are one GGUF file stands for that file.

    Raises:
        UnsupportedModel: The only weights of the folder are several GGUF files.
    """
    if model.gguf_file is not None:
        return model
    names = ContainedFolder(model.folder).names()
    if safetensors_among(names):
        return model
    match [name for name in names if name.endswith(GGUF_SUFFIX)]:
        case []:
            return model
        case [only]:
            return replace(model, gguf_file=only)
        case several:
            raise UnsupportedModel(
                f"{model.id} holds {len(several)} GGUF files, such as {', '.join(several[:3])}",
                needed="one model",
                next_step="name the file: --gguf-file FILE, or gguf_file in a request",
                param="gguf_file",
            )


def input_fingerprint(
    named: NamedInput, model_content: dict[str, Any], calibration: TextSource, evaluation: TextSource
) -> str:
    """Return the digest of everything that decides what the results will be."""
    settings = {
        **named.settings,
        "calibration": named.calibration.model_dump(mode="json") | {"text": _text_content(calibration)},
        "evaluation": named.evaluation.model_dump(mode="json") | {"text": _text_content(evaluation)},
    }
    document = {"pipeline": PIPELINE_VERSION, "model": model_content, "settings": settings}
    return digest_of_bytes(json.dumps(document, sort_keys=True, separators=(",", ":")).encode())


def _folder_content(folder: ContainedFolder) -> dict[str, str]:
    content = {}
    for name in (name for name in folder.names() if is_wanted(name)):
        with folder.open(name, max_bytes=_max_bytes(name)) as file:
            content[name] = file.digest()
    return content


def _max_bytes(name: str) -> int | None:
    if name.endswith(".safetensors"):
        return None
    return MAX_JSON_BYTES if name.endswith((".json", "merges.txt")) else MAX_DOCUMENT_BYTES


def _text_content(text: TextSource) -> dict[str, str]:
    if text.path is None:
        return {"name": text.name}
    if text.path.is_dir():
        folder, names = text_folder_files(text.path)
        content = {"name": text.name}
        for name in names:
            with folder.open(name) as file:
                content[name] = file.digest()
        return content
    with open_text(text.path) as file:
        return {"name": text.name, "digest": file.digest()}
