"""What a Hugging Face folder holds, without loading a weight: JSON objects, weight files, names and shapes in them.

    model.safetensors.index.json     names the files, where there are several
    model.safetensors                the one file, where there is no index; both are two models, and refused
    *.safetensors                    where there is neither; an adapter's are left out

Tensors have the names that they had in the network itself: what torch.compile, DDP, FSDP and checkpointing put in front
is taken off. What is loaded and what is planned for must be the same tensors, so both ask here. Costs a read of the
headers, some kilobytes. Imports no torch. Knows nothing about networks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path, PurePath
from typing import Any

import safetensors

from cloud_service.contained_folder import MAX_JSON_BYTES, ContainedFolder
from shared.errors import UnsupportedModel
from shared.strict_json import parse_json

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_MAX_HEADER_BYTES = 32 * 1024 * 1024
_INNER_WRAPPERS = re.compile(r"\b(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_OUTER_WRAPPER = "module."

COMPUTED_TENSORS = ("rotary_emb.inv_freq", ".masked_bias", "decoder.version")
"""Ends of the names of tensors in older checkpoints that are no parameters: a network computes them."""

ADAPTER_WEIGHTS = "adapter_model."
"""Begin of the names of an adapter's files."""


_PREFIXES_OF_OTHERS = {
    "base_model.model.": "an adapter that was not merged: call merge_and_unload(), and save what it returns",
    "v_head.": "a value head of reinforcement learning: save the policy alone (model.pretrained_model)",
    "score.": "the head of a classifier: give a model with its language-model head",
    "language_model.": "a model of pictures and text: give its text model alone",
}
"""Begin of a tensor's name → what saved it, and what to do."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """What a header says about a tensor.

    Attributes:
        shape: Its shape.
        dtype: Its type, as safetensors writes it: ``F16``, ``BF16``, ``F32`` …
        stored_name: Its name in the file.
    """

    shape: tuple[int, ...]
    dtype: str
    stored_name: str


def weight_files(folder: ContainedFolder) -> list[str]:
    """Return the names of the files that hold the model's weights; none where the folder has none.

    Raises:
        UnsupportedModel: The index is damaged, names a file that is elsewhere or missing, or stands beside another
            set of weights.
    """
    if not folder.has(_INDEX):
        every = [name for name in folder.names() if name.endswith(".safetensors")]
        own = [name for name in every if not name.startswith(ADAPTER_WEIGHTS)]
        return [_SINGLE] if folder.has(_SINGLE) else own
    shards = read_json(folder, _INDEX).get("weight_map", {})
    names = sorted({str(name) for name in shards.values()}) if isinstance(shards, dict) else []
    if unsafe := [name for name in names if PurePath(name).name != name]:
        raise unsupported(f"{_INDEX} names {unsafe[0]!r}", "plain file names")
    if missing := [name for name in names if not folder.has(name)]:
        raise unsupported(f"{missing[0]}, named by {_INDEX}, is missing", "every shard")
    if folder.has(_SINGLE) and _SINGLE not in names:
        raise UnsupportedModel(
            f"there are two sets of weights: {_SINGLE}, and the {len(names)} files that {_INDEX} names",
            needed="one set; which of them is meant cannot be told",
            next_step=f"delete the older one: {_SINGLE}, or {_INDEX} with its files",
            param="model",
        )
    return names


def stored_tensors(folder: ContainedFolder, file: str) -> dict[str, StoredTensor]:
    """Return the floating-point tensors of a file by their names in the network, in the header's order.

    Raises:
        UnsupportedModel: The file is damaged, is not a regular file inside the folder, or has a tensor twice.
    """
    found: dict[str, StoredTensor] = {}
    for stored_name, tensor in header_of(folder, file).items():
        if "F" not in tensor.dtype:
            continue
        name = plain_name(stored_name)
        if (other := found.get(name)) is not None:
            raise unsupported(f"{file} holds {name[:80]} as {other.stored_name} and {stored_name}", "every weight once")
        found[name] = tensor
    return found


def plain_name(name: str) -> str:
    """Return a tensor's name without what wrappers of a network put in front of it or of its parts."""
    plain = _INNER_WRAPPERS.sub("", name)
    while plain.startswith(_OUTER_WRAPPER):
        plain = plain.removeprefix(_OUTER_WRAPPER)
    return plain


def foreign_names(names: Iterable[str]) -> tuple[str, str]:
    """Return what is found and what is needed where tensors do not have the names that transformers gives them.

    Args:
        names: Of all tensors; at least one.
    """
    known = sorted(names)
    for prefix, what in _PREFIXES_OF_OTHERS.items():
        if any(name.startswith(prefix) for name in known):
            return f"names begin with {prefix!r}", f"a whole model; this is of {what}"
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(known[0], known[-1], strict=False))
    common = "".join(first for first, _ in alike)
    shared = f", and all begin with {common[:80]!r}" if common and len(known) > 1 else ""
    return f"there is {known[0][:80]}{shared}", "the names that transformers gives them"


def header_of(folder: ContainedFolder, file: str) -> dict[str, StoredTensor]:
    """Return all tensors that a file's header names, as they are named there.

    Raises:
        UnsupportedModel: The file is damaged, or is not a regular file inside the folder.
    """
    try:
        with folder.open(file) as contained:
            _check_header_length(file, contained.path)
            with safetensors.safe_open(contained.path, "np") as opened:
                slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
                return {
                    name: StoredTensor(tuple(part.get_shape()), str(part.get_dtype()), name)
                    for name, part in slices.items()
                }
    except safetensors.SafetensorError as error:
        raise unsupported(f"{file}: {error}", "an undamaged safetensors file; fetch it again") from error


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
