"""What a Hugging Face folder holds, without loading a weight: JSON objects, weight files, names and shapes in them.

    model.safetensors.index.json     names the files, where there are several
    model.safetensors                the one file, where there is no index
    *.safetensors                    where there is neither

What is loaded and what is planned for must be the same tensors, so both ask here. Costs a read of the headers, some
kilobytes. Imports no torch. Knows nothing about networks.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import safetensors

from cloud_service.contained_folder import MAX_JSON_BYTES, ContainedFolder
from shared.errors import UnsupportedModel
from shared.strict_json import parse_json

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_MAX_HEADER_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """What a header says about a tensor.

    Attributes:
        shape: Its shape.
        dtype: Its type, as safetensors writes it: ``F16``, ``BF16``, ``F32`` …
    """

    shape: tuple[int, ...]
    dtype: str


def weight_files(folder: ContainedFolder) -> list[str]:
    """Return the names of the files that hold the model's weights; none where the folder has none.

    Raises:
        UnsupportedModel: The index is damaged, or names a file that is elsewhere or missing.
    """
    if not folder.has(_INDEX):
        every = [name for name in folder.names() if name.endswith(".safetensors")]
        return [_SINGLE] if folder.has(_SINGLE) else every
    shards = read_json(folder, _INDEX).get("weight_map", {})
    names = sorted({str(name) for name in shards.values()}) if isinstance(shards, dict) else []
    if unsafe := [name for name in names if PurePath(name).name != name]:
        raise unsupported(f"{_INDEX} names {unsafe[0]!r}", "plain file names")
    if missing := [name for name in names if not folder.has(name)]:
        raise unsupported(f"{missing[0]}, named by {_INDEX}, is missing", "every shard")
    return names


def stored_tensors(folder: ContainedFolder, file: str) -> dict[str, StoredTensor]:
    """Return the floating-point tensors that a file's header names, in its order.

    Raises:
        UnsupportedModel: The file is damaged, or is not a regular file inside the folder.
    """
    try:
        with folder.open(file) as contained:
            _check_header_length(file, contained.path)
            with safetensors.safe_open(contained.path, "np") as opened:
                slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
                found = {
                    name: StoredTensor(tuple(part.get_shape()), str(part.get_dtype())) for name, part in slices.items()
                }
    except safetensors.SafetensorError as error:
        raise unsupported(f"{file}: {error}", "an undamaged safetensors file; fetch it again") from error
    return {name: tensor for name, tensor in found.items() if "F" in tensor.dtype}


def _check_header_length(file: str, path: Path) -> None:
    """Refuse a header that would take the library seconds and gigabytes; the largest models' have a few megabytes."""
    with path.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
    if length > _MAX_HEADER_BYTES:
        raise unsupported(f"{file} states a header of {length} bytes", f"at most {_MAX_HEADER_BYTES} bytes")


def read_json(folder: ContainedFolder, name: str, *, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Return a JSON object of the checkpoint.

    Raises:
        UnsupportedModel: The file is missing, too long, not JSON or not an object, or not a file inside the folder.
    """
    if not folder.has(name):
        raise unsupported(f"there is no {name}", "a Hugging Face model folder")
    return parse_object(folder.read(name, max_bytes=max_bytes), name)


def parse_object(data: bytes, name: str, *, has_unique_keys: bool = False) -> dict[str, Any]:
    """Return the JSON object in ``data``, the content of the checkpoint's file ``name``; see ``parse_json``.

    Raises:
        UnsupportedModel: It is not JSON, or not an object.
    """
    try:
        document = parse_json(data, has_unique_keys=has_unique_keys)
    except ValueError as error:
        raise unsupported(f"{name}: {error}", "a JSON object") from error
    if not isinstance(document, dict):
        raise unsupported(f"{name} holds {type(document).__name__}", "a JSON object")
    return document


def unsupported(found: str, needed: str) -> UnsupportedModel:
    """Return the error of a checkpoint that cannot be prepared."""
    return UnsupportedModel(found, needed=needed, next_step="choose another checkpoint or repair it", param="model")
