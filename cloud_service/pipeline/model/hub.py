"""Fetches a model from the hub: the one port to ``huggingface_hub``, and the one place its errors are converted.

Only what a preparation reads is fetched: safetensors, JSON, tokenizer files, licence and model card. A download that
was cut goes on where it was (huggingface_hub keeps partials), and every file's length is compared with what the hub
said, because a partial snapshot has been returned as a success before (huggingface_hub#3007). A snapshot whose files
are all here with their lengths is used without asking the hub again.
Knows nothing about what is inside the files.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name

from cloud_service.pipeline.model.folder_kinds import refuse_without_safetensors, safetensors_among
from cloud_service.progress import ProgressSink
from cloud_service.sources import GGUF_SUFFIX, HubModel, SourcePolicy
from shared.api import Stage
from shared.durable_files import disk_errors, free_bytes
from shared.errors import DiskError, InvalidModelId, NetworkError, NotFound, Unauthorized, UnsupportedModel

WANTED_FILES = ("*.safetensors", "*.json", "*.jinja", "merges.txt", "tokenizer.model", "LICENSE*", "README*")
"""Patterns of the files a preparation reads, at the top of a repository."""

_UNWANTED_FILES = ("consolidated*", "*/*")
TransportError: type[Exception] = HfHubHTTPError.__bases__[0]
"""Base of the errors of the hub library's HTTP client, which has changed twice."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The files of a model at one commit.

    Attributes:
        commit: 40 hex digits.
        sizes: Bytes of each file that a preparation reads, by name.
    """

    commit: str
    sizes: dict[str, int]


def find_snapshot(model: HubModel, policy: SourcePolicy) -> Snapshot:
    """Return what the model's revision names now; offline, what is cached of it.

    Raises:
        UnsupportedModel: The repository has no safetensors, or not the GGUF file that is named.
        NotFound: The hub has no such model or revision.
        Unauthorized: The model is gated or private.
        NetworkError: The hub cannot be reached, or offline the model is not cached.
    """
    with _hub_errors(model, policy):
        if policy.is_offline:
            folder = Path(snapshot_download(model.id, revision=model.revision, local_files_only=True))
            commit, files = folder.name, {path.name: path.stat().st_size for path in folder.iterdir()}
        else:
            info = _api(policy).model_info(model.id, revision=model.revision, files_metadata=True)
            commit, files = str(info.sha), {file.rfilename: file.size or 0 for file in info.siblings or []}
    if model.gguf_file is None:
        if not safetensors_among(files):
            refuse_without_safetensors(files, model.id)
        wanted = [name for name in files if is_wanted(name)]
    else:
        check_has_gguf(files, model)
        wanted = [model.gguf_file]
    return Snapshot(commit, {name: files[name] for name in sorted(wanted)})


def fetch(model: HubModel, snapshot: Snapshot, policy: SourcePolicy, progress: ProgressSink) -> Path:
    """Return the folder with the files of a snapshot, fetching what is missing; the hub is asked for nothing else.

    No part of the folder's path is a link.

    Raises:
        DiskError: The disk cannot hold it.
        NotFound, Unauthorized, NetworkError: As ``find_snapshot``; what was fetched is kept.
    """
    with _hub_errors(model, policy):
        missing = [name for name, size in snapshot.sizes.items() if _cached_size(model, snapshot.commit, name) != size]
        if not missing:
            return _cached_folder(model, snapshot.commit).resolve()
        if policy.is_offline:
            raise LocalEntryNotFoundError(f"{missing[0]} is not cached")
        _check_disk(model, sum(snapshot.sizes[name] for name in missing))
        progress.stage(Stage.DOWNLOADING, total=sum(snapshot.sizes.values()), unit="bytes")
        done = 0
        for name, size in snapshot.sizes.items():
            path = _download_file(model, snapshot.commit, name, size, policy)
            if path.stat().st_size != size:
                found = f"{name}: {path.stat().st_size} bytes"
                raise NetworkError(found, needed=f"{size} bytes", next_step="try again")
            done += size
            progress.advance(done)
        return path.parent.resolve()


def _cached_size(model: HubModel, commit: str, name: str) -> int | None:
    path = _cached_folder(model, commit) / name
    return path.stat().st_size if path.exists() else None


def _cached_folder(model: HubModel, commit: str) -> Path:
    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=model.id, repo_type="model") / "snapshots" / commit


def _download_file(model: HubModel, commit: str, name: str, size: int, policy: SourcePolicy) -> Path:
    is_damaged = _cached_size(model, commit, name) not in (None, size)
    path = hf_hub_download(
        model.id,
        name,
        revision=commit,
        endpoint=policy.hub_endpoint,
        token=policy.hub_token or False,
        force_download=is_damaged,
    )
    return Path(path)


def _check_disk(model: HubModel, missing_bytes: int) -> None:
    cache = Path(constants.HF_HUB_CACHE)
    partials = (cache / repo_folder_name(repo_id=model.id, repo_type="model") / "blobs").glob("*.incomplete")
    needed = missing_bytes - sum(partial.stat().st_size for partial in partials)
    if (free := free_bytes(cache)) < needed:
        raise DiskError(
            f"{free} bytes free for {cache}", needed=f"{needed} bytes for {model.id}", next_step="free some disk space"
        )


def check_has_gguf(names: Iterable[str], model: HubModel) -> None:
    """Refuse a repository without the GGUF file that is named, naming those that it has.

    Raises:
        UnsupportedModel: The file is not among ``names``.
    """
    files = list(names)
    if model.gguf_file in files:
        return
    has = sorted(name for name in files if name.endswith(GGUF_SUFFIX))
    raise UnsupportedModel(
        f"{model.id} has no file {model.gguf_file}",
        needed=f"one of {', '.join(has[:8])}" if has else "a repository with GGUF files",
        next_step="name one of its files: --gguf-file FILE, or gguf_file in a request",
        param="gguf_file",
    )


def is_wanted(name: str) -> bool:
    """Whether a preparation reads a file of that name."""
    return any(fnmatch.fnmatch(name, pattern) for pattern in WANTED_FILES) and not any(
        fnmatch.fnmatch(name, pattern) for pattern in _UNWANTED_FILES
    )


def _api(policy: SourcePolicy) -> HfApi:
    return HfApi(endpoint=policy.hub_endpoint, token=policy.hub_token or False)


def first_line(error: Exception) -> str:
    """Return what an error says in one line, or its name where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


@contextmanager
def _hub_errors(model: HubModel, policy: SourcePolicy) -> Iterator[None]:
    try:
        with disk_errors(Path(constants.HF_HUB_CACHE)):
            yield
    except GatedRepoError as error:
        raise Unauthorized(
            f"model {model.id!r} is gated", needed="a hub token with access", next_step="set the service's hub token"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise NotFound(
            f"the hub at {policy.hub_endpoint} has no model {model.id!r}"
            + (f" with revision {model.revision!r}" if model.revision else ""),
            needed="the id of a public model, or of one that the hub token may read",
            next_step="check the spelling on the hub's web page",
            param="model",
        ) from error
    except HFValidationError as error:
        raise InvalidModelId(f"model {model.id!r}: {error}", needed="a hub id", param="model") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, TransportError, ConnectionError, TimeoutError) as error:
        raise NetworkError(
            f"{model.id!r} cannot be fetched from {policy.hub_endpoint}: {first_line(error)}",
            needed="a hub that answers, or a model that is already cached when offline",
            next_step="try again later; what was fetched is kept",
        ) from error
