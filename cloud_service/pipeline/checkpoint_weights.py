"""Reads a checkpoint's weights one at a time, as published: rounded to float16, the precision that devices keep.

What float16 cannot hold (NaN, infinity, beyond ±65504) is refused by name. Only safetensors files are read; their
headers alone give names and shapes. Costs one tensor in memory, in its stored precision and in float16; nothing is
kept, so a block's originals can be read again whenever they are needed and the 16-bit model is never held beside the
network. Knows nothing about networks.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from shared.errors import UnsupportedModel

_INDEX = "model.safetensors.index.json"
_MAX_JSON_BYTES = 64 * 1024 * 1024
_BASE_PREFIX = "model."
"""What the names of a checkpoint without a language-model head lack."""

_REDUNDANT_WEIGHTS = ("rotary_emb.inv_freq", "lm_head.weight")
"""What checkpoints may hold besides the parameters: computed frequencies, and the copy of a tied embedding."""


class CheckpointWeights:
    """The floating-point tensors of a Hugging Face folder, by parameter name.

    Args:
        folder: With ``model.safetensors``, or several files and their index.

    Raises:
        UnsupportedModel: A file is missing or damaged, or an index names a file elsewhere.
    """

    def __init__(self, folder: Path) -> None:
        self._files: dict[str, Path] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._dtypes: set[str] = set()
        for path in _weight_files(folder):
            for name, (shape, dtype) in _header(path).items():
                self._files[name], self._shapes[name] = path, shape
                self._dtypes.add(dtype)
        self._stored_names = {name: name for name in self._files}

    def claim(self, expected: Collection[str]) -> None:
        """Match the stored names with a network's parameter names, with and without the prefix ``model.``.

        Raises:
            UnsupportedModel: A parameter is not stored, or a stored weight has no place: it would be another model.
        """
        stored = {name if name in expected else _BASE_PREFIX + name: name for name in self._files}
        if missing := sorted(set(expected) - set(stored)):
            raise unsupported(
                f"{missing[0]} is not among the weights ({len(missing)} missing)", "a complete checkpoint"
            )
        strangers = {original for name, original in stored.items() if name not in expected}
        if unknown := sorted(name for name in strangers if not name.endswith(_REDUNDANT_WEIGHTS)):
            raise unsupported(
                f"config.json has no place for the weight {unknown[0]} ({len(unknown)} like it)",
                "a config.json that describes every weight (layers, biases)",
            )
        self._stored_names |= stored

    @property
    def is_stored_in_float16(self) -> bool:
        """Whether every weight is stored in float16, so that the model was made for its range."""
        return self._dtypes == {"F16"}

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the stored shape of a weight."""
        return self._shapes[self._stored_names[name]]

    def read(self, name: str) -> Tensor:
        """Return a weight in float16, on the CPU.

        Raises:
            UnsupportedModel: The file is damaged, or a value is not finite in float16.
        """
        stored = self._stored_names[name]
        with safetensors.safe_open(self._files[stored], "pt") as file:
            return _to_float16(stored, file.get_tensor(stored))

    def __contains__(self, name: str) -> bool:
        return name in self._stored_names


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


def _weight_files(folder: Path) -> list[Path]:
    if (folder / _INDEX).exists():
        shards = read_json(folder / _INDEX).get("weight_map", {})
        names = sorted({str(name) for name in shards.values()}) if isinstance(shards, dict) else []
        if unsafe := [name for name in names if Path(name).name != name]:
            raise unsupported(f"{_INDEX} names {unsafe[0]!r}", "plain file names")
        paths = [folder / name for name in names]
    elif (folder / "model.safetensors").exists():
        paths = [folder / "model.safetensors"]
    else:
        paths = sorted(folder.glob("*.safetensors"))
    for path in paths:
        if not path.exists():
            raise unsupported(f"{path.name}, named by {_INDEX}, is missing", "every shard")
    return paths


def _header(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return shape and dtype of the floating-point tensors in a file."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            described = {name: (tuple(part.get_shape()), str(part.get_dtype())) for name, part in slices.items()}
            return {name: (shape, dtype) for name, (shape, dtype) in described.items() if "F" in dtype}
    except safetensors.SafetensorError as error:
        raise unsupported(f"{path.name}: {error}", "an undamaged safetensors file; fetch it again") from error


def _to_float16(name: str, tensor: Tensor) -> Tensor:
    if not torch.isfinite(tensor).all():
        raise unsupported(f"weight {name} holds NaN or infinite values", "finite weights")
    rounded = tensor.to(torch.float16)
    if not torch.isfinite(rounded).all():
        largest = float(tensor.abs().max())
        raise unsupported(f"weight {name} holds {largest:g}", "weights within ±65504, the range of float16")
    return rounded
