"""Fetches a model from the hub: the one port to ``huggingface_hub``, and the one place its errors are converted.

Only what a preparation reads is fetched: safetensors, JSON, tokenizer files, licence and model card. A download that
was cut goes on where it was (huggingface_hub keeps partials), and every file's length is compared with what the hub
said, because a partial snapshot has been returned as a success before (huggingface_hub#3007).
Knows nothing about what is inside the files.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download, try_to_load_from_cache
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

from cloud_service.progress import ProgressSink
from cloud_service.sources import HubModel, SourcePolicy
from shared.api import Stage
from shared.durable_files import disk_errors, free_bytes
from shared.errors import DiskError, InvalidModelId, NetworkError, NotFound, Unauthorized, UnsupportedModel

WANTED_FILES = ("*.safetensors", "*.json", "*.jinja", "merges.txt", "LICENSE*", "README*")
"""Patterns of the files a preparation reads, at the top of a repository."""

_UNWANTED_FILES = ("consolidated*", "*/*")
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_TransportError: type[Exception] = HfHubHTTPError.__bases__[0]  # the hub library has changed its HTTP client twice


def resolve_commit(model: HubModel, policy: SourcePolicy) -> str:
    """Return the commit (40 hex digits) that the model's revision names now; offline, the one that is cached.

    Raises:
        NotFound: The hub has no such model or revision.
        Unauthorized: The model is gated or private.
        NetworkError: The hub cannot be reached, or offline the model is not cached.
    """
    with _hub_errors(model, policy):
        if policy.is_offline:
            return Path(snapshot_download(model.id, revision=model.revision, local_files_only=True)).name
        return str(_api(policy).model_info(model.id, revision=model.revision).sha)


def download(model: HubModel, commit: str, policy: SourcePolicy, progress: ProgressSink) -> Path:
    """Return the folder with the wanted files of ``commit``, fetching what is missing.

    Raises:
        UnsupportedModel: The repository has no safetensors.
        DiskError: The disk cannot hold it.
        NotFound, Unauthorized, NetworkError: As ``resolve_commit``; what was fetched is kept.
    """
    with _hub_errors(model, policy):
        if policy.is_offline:
            return Path(snapshot_download(model.id, revision=commit, local_files_only=True))
        sizes = _wanted_sizes(model, commit, policy)
        _check_disk(model, commit, sizes)
        progress.stage(Stage.DOWNLOADING, total=sum(sizes.values()), unit="bytes")
        done = 0
        for name, size in sizes.items():
            path = _download_file(model, commit, name, policy)
            if path.stat().st_size != size:
                found = f"{name}: {path.stat().st_size} bytes"
                raise NetworkError(found, needed=f"{size} bytes", next_step="try again")
            done += size
            progress.advance(done)
        return path.parent


def _download_file(model: HubModel, commit: str, name: str, policy: SourcePolicy) -> Path:
    return Path(
        hf_hub_download(model.id, name, revision=commit, endpoint=policy.hub_endpoint, token=policy.hub_token or False)
    )


def _check_disk(model: HubModel, commit: str, sizes: dict[str, int]) -> None:
    cache = Path(constants.HF_HUB_CACHE)
    missing = [n for n in sizes if not isinstance(try_to_load_from_cache(model.id, n, revision=commit), str)]
    partials = (cache / repo_folder_name(repo_id=model.id, repo_type="model") / "blobs").glob("*.incomplete")
    needed = sum(sizes[name] for name in missing) - sum(partial.stat().st_size for partial in partials)
    if (free := free_bytes(cache)) < needed:
        raise DiskError(
            f"{free} bytes free for {cache}", needed=f"{needed} bytes for {model.id}", next_step="free some disk space"
        )


def _wanted_sizes(model: HubModel, commit: str, policy: SourcePolicy) -> dict[str, int]:
    info = _api(policy).model_info(model.id, revision=commit, files_metadata=True)
    files = {file.rfilename: file.size or 0 for file in info.siblings or []}
    check_has_safetensors(files, model.id)
    return {name: size for name, size in sorted(files.items()) if is_wanted(name)}


def check_has_safetensors(names: object, model: str) -> None:
    """Refuse a checkpoint without safetensors, naming the pickle that was found instead.

    Raises:
        UnsupportedModel: There is no .safetensors among ``names``.
    """
    files = [str(name) for name in names]  # type: ignore[attr-defined]
    if any(name.endswith(".safetensors") for name in files):
        return
    pickles = sorted(name for name in files if name.endswith(_PICKLE_SUFFIXES))
    raise UnsupportedModel(
        f"{model} has only pickled weights ({pickles[0]})" if pickles else f"{model} has no weight files",
        needed="weights as .safetensors: a pickle can run code when it is opened",
        next_step="convert it on a machine you trust: model.save_pretrained(folder, safe_serialization=True)",
        param="model",
    )


def is_wanted(name: str) -> bool:
    """Whether a preparation reads a file of that name."""
    return any(fnmatch.fnmatch(name, pattern) for pattern in WANTED_FILES) and not any(
        fnmatch.fnmatch(name, pattern) for pattern in _UNWANTED_FILES
    )


def _api(policy: SourcePolicy) -> HfApi:
    return HfApi(endpoint=policy.hub_endpoint, token=policy.hub_token or False)


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
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, _TransportError, ConnectionError) as error:
        raise NetworkError(
            f"{model.id!r} cannot be fetched from {policy.hub_endpoint}: {str(error).splitlines()[0][:200]}",
            needed="a hub that answers, or a model that is already cached when offline",
            next_step="try again later; what was fetched is kept",
        ) from error
