"""Where models and texts may come from: a hub id of strict form, or a path under an allowed root; never a URL.

A request names a model and texts by strings that come over the network. They are turned into a ``ModelSource`` or a
``TextSource`` here, before anything is opened, so that no string can reach another host (SSRF) or climb out of the
configured folders. The service asks these rules when a request comes, and the job's process asks them again when it
opens what the request names, because links may change in between. A path is resolved (links followed) before it is
compared with the roots. Knows nothing about the hub's protocol, torch or tokens.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from shared.api import OWN_ROWS, CalibrationSpec
from shared.errors import InvalidModelId, InvalidRequest
from shared.tasks.named_tasks import SPLIT_FILES

C4 = "c4"
"""Name of the hub's C4-en as a text."""

PINNED_COMMIT = "commit.json"
"""File of a workspace that keeps a hub model at one commit; who takes the workspace over for a new request drops it."""

_PART = r"[A-Za-z0-9](?:[\w.-]*\w)?"
_HUB_ID = re.compile(rf"(?=.{{1,96}}$)(?!.*(--|\.\.|\.git$)){_PART}(/{_PART})?", re.ASCII)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|(?:https?|hf|file):")
_TEXT_SUFFIXES = (".jsonl", ".txt")
_ROW_SUFFIXES = (".jsonl", ".csv", ".tsv")


@dataclass(frozen=True, slots=True)
class SourcePolicy:
    """What a preparation may read.

    Attributes:
        model_roots: Folders whose subfolders may be named as models.
        text_roots: Folders whose files may be named as texts.
        allow_any_local: Whether any local path may be named: true for a person at a terminal, false for the service.
        hub_endpoint: The only host that models are fetched from. C4 comes from the host that HF_ENDPOINT names.
        is_offline: Whether only files that are already on this machine are used.
        hub_token: Token for gated models, sent to ``hub_endpoint`` alone; never written anywhere.
    """

    model_roots: tuple[Path, ...] = ()
    text_roots: tuple[Path, ...] = ()
    allow_any_local: bool = False
    hub_endpoint: str = "https://huggingface.co"
    is_offline: bool = False
    hub_token: str | None = None

    def __repr__(self) -> str:
        return f"SourcePolicy(model_roots={self.model_roots}, hub_endpoint={self.hub_endpoint!r})"


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A Hugging Face folder on this machine; ``id`` is its base name, so no absolute path is ever published."""

    folder: Path

    @property
    def id(self) -> str:
        """Name under which the model is recorded."""
        return self.folder.name


@dataclass(frozen=True, slots=True)
class HubModel:
    """A repository on the hub."""

    id: str
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class TextSource:
    """A text: C4-en on the hub (``path`` is None), a folder laid out like it, or a .jsonl or .txt file; or task rows.

    Attributes:
        path: The folder or file.
        task: Where the file holds task rows: the named task, or ``rows`` for rows of no named task.
    """

    path: Path | None = None
    task: str | None = None

    @property
    def name(self) -> str:
        """Name under which the text is recorded: never an absolute path."""
        if self.path is None:
            return C4
        return self.path.name if self.task in (None, OWN_ROWS) else f"{self.task}/{self.path.name}"


ModelSource = LocalModel | HubModel


def locate_model(model: str, revision: str | None, policy: SourcePolicy) -> ModelSource:
    """Return where the model ``model`` names comes from; an existing allowed folder wins over a hub id.

    Raises:
        InvalidModelId: It is a URL, leaves the allowed roots, names no existing folder, or is no hub id.
    """
    if _URL.match(model):
        raise _invalid(f"model {_shorten(model)!r} is a URL")
    folder = _local_path(model, policy.model_roots, policy)
    if folder is not None and folder.is_dir():
        return LocalModel(folder)
    if ".." in model:
        raise _invalid(f"model {_shorten(model)!r} contains '..'")
    if not _HUB_ID.fullmatch(model):
        raise _invalid(f"model {_shorten(model)!r} is no folder that may be read and no hub id")
    return HubModel(model, revision)


def locate_text(text: str, policy: SourcePolicy, *, param: str) -> TextSource:
    """Return where the text comes from.

    Raises:
        InvalidRequest: It is neither ``c4`` nor an existing .jsonl, .txt or folder that may be read.
    """
    if text == C4:
        return TextSource()
    path = None if _URL.match(text) else _local_path(text, policy.text_roots, policy)
    if path is not None and (path.is_dir() or (path.is_file() and path.suffix in _TEXT_SUFFIXES)):
        return TextSource(path)
    raise InvalidRequest(
        f"{param} {_shorten(text)!r} is no file that may be read",
        needed="'c4', or a .jsonl (key text) or .txt file under one of the text roots",
        next_step="check the path; zo-cloud serve --text-root FOLDER allows the texts in FOLDER",
        param=param,
    )


def locate_calibration(spec: CalibrationSpec, policy: SourcePolicy, *, param: str = "calibration.text") -> TextSource:
    """Return where the calibration's text or rows come from; of a named task, its file of training rows.

    Every file looked for is compared with the roots by itself: a link in a task's folder cannot lead out of them.

    Raises:
        InvalidRequest: It is nothing that may be read.
    """
    if spec.task is None:
        return locate_text(spec.text, policy, param=param)
    names = (spec.text,) if spec.task == OWN_ROWS else (spec.text, *_places_of_rows(spec.text, spec.task))
    for name in names:
        path = None if _URL.match(name) else _local_path(name, policy.text_roots, policy)
        if path is not None and path.is_file() and path.suffix in _ROW_SUFFIXES:
            return TextSource(path, spec.task)
    raise _no_rows(spec, param)


def _no_rows(spec: CalibrationSpec, param: str) -> InvalidRequest:
    file = f"a {', '.join(_ROW_SUFFIXES)} file under one of the text roots"
    if spec.task == OWN_ROWS:
        found, needed = "is no file of rows that may be read", file
    else:
        found = f"holds no rows of {spec.task} that may be read"
        needed = f"the folder of a folder {spec.task} with one of {', '.join(SPLIT_FILES['train'])}, or {file}"
    return InvalidRequest(
        f"{param} {_shorten(spec.text)!r} {found}",
        needed=needed,
        next_step="check the path; zo-cloud serve --text-root FOLDER allows the files in FOLDER",
        param=param,
    )


def _places_of_rows(folder: str, task: str) -> list[str]:
    return [f"{place}/{name}" for place in (f"{folder}/{task}", folder) for name in SPLIT_FILES["train"]]


def _local_path(name: str, roots: tuple[Path, ...], policy: SourcePolicy) -> Path | None:
    if policy.allow_any_local and (path := _existing(Path(name))) is not None:
        return path
    for root in roots:
        path = _existing(root / name)
        if path is not None and path.is_relative_to(root.resolve()) and path != root.resolve():
            return path
    return None


def _existing(path: Path) -> Path | None:
    """Return the path with links followed; None where there is nothing, or nothing can have such a name."""
    try:
        return path.resolve(strict=True)
    except (OSError, RuntimeError, ValueError):  # absent or too long; a loop of links; a NUL or lone surrogate
        return None


def _invalid(found: str) -> InvalidModelId:
    return InvalidModelId(
        found,
        needed="a hub id such as 'facebook/opt-125m', or a folder under one of the model roots",
        next_step="check the spelling; zo-cloud serve --model-root FOLDER allows the models in FOLDER",
        param="model",
    )


def _shorten(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."
