"""Where models and texts may come from: a path under an allowed root, or a hub id of strict form; never a URL.

    team/model        a folder under a model root; else, on the hub, only where ``hub_namespaces`` or a person allows it
    team/model.gguf   a GGUF file under a model root
    hub:team/model    the hub's model, whatever folders there are

A request names a model and texts by strings that come over the network. They are turned into a ``ModelSource`` or a
``TextSource`` here, before anything is opened, so that no string can reach another host (SSRF) or climb out of the
configured folders. The service asks these rules when a request comes, and the job's process asks them again when it
opens what the request names, because links may change in between. A path is resolved (links followed) before it is
compared with the roots. Knows nothing about the hub's protocol, torch or tokens.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from shared.api import OWN_ROWS, CalibrationSpec
from shared.errors import InvalidModelId, InvalidRequest
from shared.tasks.named_tasks import SPLIT_FILES

HUB_PREFIX = "hub:"
"""What a request writes in front of a hub id that must not be taken for a folder's name; it is recorded without."""

C4 = "c4"
"""Name of the hub's C4-en as a text."""

SELF = "self"
"""Name of the text that the model writes itself."""
GGUF_SUFFIX = ".gguf"
"""End of the names of GGUF files."""

PINNED_COMMIT = "commit.json"
"""File of a workspace that keeps a hub model at one commit; who takes the workspace over for a new request drops it."""

_PART = r"[A-Za-z0-9](?:[\w.-]*\w)?"
_HUB_ID = re.compile(rf"(?=.{{1,96}}$)(?!.*(--|\.\.|\.git$)){_PART}(/{_PART})?", re.ASCII)
_CACHED = "models--"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|(?:https?|hf|file):")
_TEXT_SUFFIXES = (".jsonl", ".txt")
_CHECK_TEXT = "check the path; the operator allows the files of a folder by zo-cloud serve --text-root FOLDER"
_ROW_SUFFIXES = (".jsonl", ".csv", ".tsv")


@dataclass(frozen=True, slots=True)
class SourcePolicy:
    """What a preparation may read.

    Attributes:
        model_roots: Folders whose subfolders may be named as models.
        text_roots: Folders whose files may be named as texts.
        allow_any_local: Whether any local path and any hub id may be named: true for a person at a terminal, false for
            the service.
        hub_namespaces: Patterns of the hub ids that need no ``hub:`` in front, such as ``meta-llama/*``; ``*`` is all.
            Any other name stands for a folder alone: where its disk is not mounted, no stranger's model takes its
            place.
        hub_endpoint: The only host that models are fetched from. C4 comes from the host that HF_ENDPOINT names.
        is_offline: Whether only files that are already on this machine are used.
        hub_token: Token for gated models, sent to ``hub_endpoint`` alone; never written anywhere.
    """

    model_roots: tuple[Path, ...] = ()
    text_roots: tuple[Path, ...] = ()
    allow_any_local: bool = False
    hub_namespaces: tuple[str, ...] = ()
    hub_endpoint: str = "https://huggingface.co"
    is_offline: bool = False
    hub_token: str | None = None

    def __repr__(self) -> str:
        return f"SourcePolicy(model_roots={self.model_roots}, hub_endpoint={self.hub_endpoint!r})"

    def place(self, kind: str) -> str:
        """Return where a local model or text has to be, as the end of a sentence; anywhere at a terminal."""
        return " that can be read" if self.allow_any_local else f" under one of the {kind} roots"


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model on this machine; ``id`` is a base name, so no absolute path is ever published.

    Attributes:
        folder: Where its files are.
        gguf_file: Name of the GGUF file in it that is the model; None for a Hugging Face folder.
    """

    folder: Path
    gguf_file: str | None = None

    @property
    def id(self) -> str:
        """Name under which the model is recorded: the file's without its suffix, the hub's, or the folder's."""
        if self.gguf_file is not None:
            return self.gguf_file.removesuffix(GGUF_SUFFIX)
        return _cached_id(self.folder) or self.folder.name

    @property
    def commit(self) -> str | None:
        """Commit of a snapshot in a hub's cache; None for any other folder."""
        return self.folder.name if self.gguf_file is None and _cached_id(self.folder) else None


@dataclass(frozen=True, slots=True)
class HubModel:
    """A repository on the hub, or one GGUF file of it."""

    id: str
    revision: str | None = None
    gguf_file: str | None = None


@dataclass(frozen=True, slots=True)
class TextSource:
    """A text: C4-en on the hub, a folder laid out like it, or a .jsonl or .txt file; or task rows; or the model's own.

    Attributes:
        path: The folder or file; None is C4, or what the model writes.
        task: Where the file holds task rows: the named task, or ``rows`` for rows of no named task.
        is_written: Whether the model writes it.
    """

    path: Path | None = None
    task: str | None = None
    is_written: bool = False

    @property
    def is_hubs(self) -> bool:
        """Whether it is read from the hub."""
        return self.path is None and not self.is_written

    @property
    def name(self) -> str:
        """Name under which the text is recorded: never an absolute path."""
        if self.path is None:
            return SELF if self.is_written else C4
        return self.path.name if self.task in (None, OWN_ROWS) else f"{self.task}/{self.path.name}"


ModelSource = LocalModel | HubModel


def locate_model(
    model: str, revision: str | None, policy: SourcePolicy, *, gguf_file: str | None = None
) -> ModelSource:
    """Return where the model ``model`` names comes from; what exists and is allowed wins over a hub id.

    Args:
        model: What a request names.
        revision: Of the hub's model.
        policy: What may be read.
        gguf_file: Name of a GGUF file in the folder or repository.

    Raises:
        InvalidModelId: It is a URL, leaves the allowed roots, names no existing folder and is not a hub id, or is a hub
            id that needs ``hub:`` in front.
    """
    if _URL.match(model):
        raise _invalid(f"model {_shorten(model)!r} is a URL", policy)
    hub_id = model.removeprefix(HUB_PREFIX)
    is_explicit = hub_id != model
    folder = None if is_explicit else _local_path(model, policy.model_roots, policy)
    if folder is not None and folder.is_dir():
        return LocalModel(_snapshot_in(folder), gguf_file)
    if folder is not None:
        return _local_file(model, policy)
    if ".." in model:
        raise _invalid(f"model {_shorten(model)!r} contains '..'", policy)
    if not _HUB_ID.fullmatch(hub_id) or (model.endswith(GGUF_SUFFIX) and not is_explicit):
        raise _invalid(f"model {_shorten(model)!r} is not a folder that may be read, and not a hub id", policy)
    is_allowed = policy.allow_any_local or any(fnmatchcase(hub_id, pattern) for pattern in policy.hub_namespaces)
    if not is_explicit and not is_allowed:
        explicit = f"{HUB_PREFIX}{hub_id}"
        raise InvalidModelId(
            f"there is no folder {model!r} under a model root",
            needed=f"a folder under one of the model roots, or {explicit} for the hub's model of that name",
            next_step=f"give {explicit}, or allow such names: zo-cloud serve --hub-namespace '{_namespace(hub_id)}'",
            next_request=f"give {explicit}; the operator may allow such names: zo-cloud serve --hub-namespace "
            f"'{_namespace(hub_id)}'",
            param="model",
        )
    return HubModel(hub_id, revision, gguf_file)


def _cached_id(folder: Path) -> str | None:
    """Return the hub id of a snapshot in a hub's cache: models--ORG--NAME/snapshots/COMMIT; None for others."""
    repository = folder.parent.parent.name
    hub_id = repository.removeprefix(_CACHED).replace("--", "/")
    is_snapshot = (
        folder.parent.name == "snapshots" and repository.startswith(_CACHED) and _COMMIT.fullmatch(folder.name)
    )
    return hub_id if is_snapshot and _HUB_ID.fullmatch(hub_id) else None


def _snapshot_in(folder: Path) -> Path:
    """Return the snapshot that a model's folder in a hub's cache stands for, by its main branch or as its only one."""
    if not folder.name.startswith(_CACHED):
        return folder
    try:
        commits = sorted(path.name for path in (folder / "snapshots").iterdir() if _COMMIT.fullmatch(path.name))
        main = folder / "refs" / "main"
        commit = main.read_bytes()[:40].decode("ascii", "replace") if main.is_file() else ""
    except OSError:
        return folder
    chosen = commit if commit in commits else commits[0] if len(commits) == 1 else None
    snapshot = _existing(folder / "snapshots" / chosen) if chosen else None
    return snapshot if snapshot is not None and snapshot.is_relative_to(folder) else folder


def _local_file(model: str, policy: SourcePolicy) -> LocalModel:
    """Return the GGUF file ``model`` names; a link in a hub's cache keeps its own name.

    Raises:
        InvalidModelId: It is another kind of file, or lies in a folder that may not be read.
    """
    place, _, name = model.rpartition("/")
    if not name.endswith(GGUF_SUFFIX):
        raise InvalidModelId(
            f"model {_shorten(model)!r} is a file",
            needed="a folder with config.json, tokenizer and weights, or a .gguf file",
            next_step=f"give the folder that it lies in: {_shorten(place) or '.'}",
            param="model",
        )
    folder = _existing(Path(place or ".")) if policy.allow_any_local else None
    for root in () if folder else policy.model_roots:
        found = _existing(root / place)
        if found is not None and found.is_relative_to(root.resolve()) and os.path.lexists(found / name):
            folder = found
            break
    if folder is None:
        raise _invalid(f"model {_shorten(model)!r} is not a file that may be read", policy)
    return LocalModel(folder, name)


def locate_text(text: str, policy: SourcePolicy, *, param: str) -> TextSource:
    """Return where the text comes from.

    Raises:
        InvalidRequest: It is neither ``c4`` nor ``self`` nor an existing .jsonl, .txt or folder that may be read.
    """
    if text in (C4, SELF):
        return TextSource(is_written=text == SELF)
    path = None if _URL.match(text) else _local_path(text, policy.text_roots, policy)
    if path is not None and (path.is_dir() or (path.is_file() and path.suffix in _TEXT_SUFFIXES)):
        return TextSource(path)
    raise InvalidRequest(
        f"{param} {_shorten(text)!r} is no file that may be read",
        needed=f"'c4', 'self' (the model writes it), or a .jsonl (key text) or .txt file{policy.place('text')}",
        next_step="check the path",
        next_request=_CHECK_TEXT,
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
    raise _no_rows(spec, policy, param)


def _no_rows(spec: CalibrationSpec, policy: SourcePolicy, param: str) -> InvalidRequest:
    file = f"a {', '.join(_ROW_SUFFIXES)} file{policy.place('text')}"
    if spec.task == OWN_ROWS:
        found, needed = "is no file of rows that may be read", file
    else:
        found = f"holds no rows of {spec.task} that may be read"
        needed = f"the folder of a folder {spec.task} with one of {', '.join(SPLIT_FILES['train'])}, or {file}"
    return InvalidRequest(
        f"{param} {_shorten(spec.text)!r} {found}",
        needed=needed,
        next_step="check the path",
        next_request=_CHECK_TEXT,
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


def _namespace(hub_id: str) -> str:
    owner, slash, _ = hub_id.partition("/")
    return f"{owner}/*" if slash else hub_id


def _invalid(found: str, policy: SourcePolicy) -> InvalidModelId:
    return InvalidModelId(
        found,
        needed=f"a hub id such as 'hub:facebook/opt-125m', or a folder or .gguf file{policy.place('model')}",
        next_step="check the spelling",
        next_request="check the spelling; the operator allows folders by zo-cloud serve --model-root FOLDER",
        param="model",
    )


def _shorten(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."
