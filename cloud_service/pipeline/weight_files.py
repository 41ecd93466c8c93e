"""What a Hugging Face folder holds, without loading a weight: JSON objects, weight files, names and shapes in them.

    model.safetensors.index.json     names the files, where there are several
    model.safetensors                the one file, where there is no index
    *.safetensors                    where there is neither

What is loaded and what is planned for must be the same tensors, so both ask here. Costs a read of the headers, some
kilobytes. Imports no torch. Knows nothing about networks.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors

from shared.errors import UnsupportedModel

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_MAX_JSON_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """What a header says about a tensor.

    Attributes:
        shape: Its shape.
        dtype: Its type, as safetensors writes it: ``F16``, ``BF16``, ``F32`` …
    """

    shape: tuple[int, ...]
    dtype: str


def weight_files(folder: Path) -> list[Path]:
    """Return the files that hold the model's weights; none where the folder has none.

    Raises:
        UnsupportedModel: The index is damaged, or names a file that is elsewhere or missing.
    """
    if not (folder / _INDEX).exists():
        single = folder / _SINGLE
        return [single] if single.exists() else sorted(folder.glob("*.safetensors"))
    shards = read_json(folder / _INDEX).get("weight_map", {})
    names = sorted({str(name) for name in shards.values()}) if isinstance(shards, dict) else []
    if unsafe := [name for name in names if Path(name).name != name]:
        raise unsupported(f"{_INDEX} names {unsafe[0]!r}", "plain file names")
    if missing := [name for name in names if not (folder / name).exists()]:
        raise unsupported(f"{missing[0]}, named by {_INDEX}, is missing", "every shard")
    return [folder / name for name in names]


def stored_tensors(file: Path) -> dict[str, StoredTensor]:
    """Return the floating-point tensors that a file's header names, in its order.

    Raises:
        UnsupportedModel: The file is damaged.
    """
    try:
        with safetensors.safe_open(file, "np") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            found = {
                name: StoredTensor(tuple(part.get_shape()), str(part.get_dtype())) for name, part in slices.items()
            }
    except safetensors.SafetensorError as error:
        raise unsupported(f"{file.name}: {error}", "an undamaged safetensors file; fetch it again") from error
    return {name: tensor for name, tensor in found.items() if "F" in tensor.dtype}


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object of the checkpoint.

    Raises:
        UnsupportedModel: The file is missing, too long, or no JSON object.
    """
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes")
        document = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise unsupported(f"there is no {path.name}", "a Hugging Face model folder") from error
    except (ValueError, RecursionError) as error:
        raise unsupported(f"{path.name}: {error}", "a JSON object") from error
    if not isinstance(document, dict):
        raise unsupported(f"{path.name} holds {type(document).__name__}", "a JSON object")
    return document


def unsupported(found: str, needed: str) -> UnsupportedModel:
    """Return the error of a checkpoint that cannot be prepared."""
    return UnsupportedModel(found, needed=needed, next_step="choose another checkpoint or repair it", param="model")
