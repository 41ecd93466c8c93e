"""Reads a checkpoint's weights one at a time, as published: rounded to float16, the precision that devices keep.

What float16 cannot hold (NaN, infinity, beyond ±65504) is refused by name. Costs one tensor in memory, in its stored
precision and in float16; nothing is kept, so a block's originals can be read again whenever they are needed and the
16-bit model is never held beside the network. Knows nothing about networks.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import safetensors
import torch
from torch import Tensor

from cloud_service.contained_folder import ContainedFolder
from cloud_service.pipeline.model.weight_files import (
    COMPUTED_TENSORS,
    foreign_names,
    stored_tensors,
    unsupported,
    weight_files,
)
from shared.errors import UnsupportedModel

_DTYPES = ("BF16", "F16", "F32", "F64")
"""What weights may be stored as."""

_HEAD = "lm_head.weight"
_REDUNDANT_WEIGHTS = (*COMPUTED_TENSORS, _HEAD)
"""What checkpoints may hold besides the parameters: what is computed, and the copy of a tied embedding."""


class CheckpointWeights:
    """The floating-point tensors of a Hugging Face folder, by parameter name.

    Args:
        folder: With ``model.safetensors``, or several files and their index.

    Raises:
        UnsupportedModel: A file is missing or damaged, an index names a file elsewhere, or a weight has a type of 8 or
            fewer bits.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = ContainedFolder(folder)
        self._files: dict[str, str] = {}
        self._keys: dict[str, str] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._dtypes: set[str] = set()
        for file in weight_files(self._folder):
            for name, tensor in stored_tensors(self._folder, file).items():
                if tensor.dtype not in _DTYPES:
                    raise unsupported(f"weight {name[:80]} is stored as {tensor.dtype}", f"one of {', '.join(_DTYPES)}")
                if name in self._files:
                    found = f"weight {name[:80]} is in {self._files[name]} and in {file}"
                    raise unsupported(found, "every weight in one file; delete the files of an older checkpoint")
                self._files[name], self._shapes[name] = file, tensor.shape
                self._keys[name] = tensor.stored_name
                self._dtypes.add(tensor.dtype)
        self._stored_names = {name: name for name in self._files}
        self._transposed: frozenset[str] = frozenset()

    def claim(
        self,
        expected: Collection[str],
        *,
        prefix: str,
        renamed: Mapping[str, str],
        computed: tuple[str, ...],
        transposed: Collection[str],
    ) -> None:
        """Match the stored names with a network's parameter names, with and without the base model's prefix.

        Args:
            expected: Names of all parameters.
            prefix: What the names of a checkpoint without a language-model head lack.
            renamed: Stored name → parameter name, where they differ.
            computed: Endings of stored names that hold no parameter.
            transposed: Parameters that are stored as (in_features, out_features).

        Raises:
            UnsupportedModel: A parameter is not stored, or a stored weight has no place: it would be another model.
        """
        known = {name: renamed.get(name, name) for name in self._files}
        stored = {name if name in expected else prefix + name: original for original, name in known.items()}
        if missing := sorted(set(expected) - set(stored)):
            raise self._incomplete(missing, sorted(set(stored) - set(expected)))
        strangers = {original for name, original in stored.items() if name not in expected}
        if unknown := sorted(name for name in strangers if not name.endswith(_REDUNDANT_WEIGHTS + computed)):
            raise unsupported(
                f"config.json has no place for the weight {unknown[0]} ({len(unknown)} like it)",
                "a config.json that describes every weight (layers, biases)",
            )
        self._stored_names |= stored
        self._transposed = frozenset(transposed)

    def _incomplete(self, missing: list[str], others: list[str]) -> UnsupportedModel:
        """Return the error of a checkpoint without some of its parameters, by what it has in their place."""
        found = f"{missing[0]} is not among the weights ({len(missing)} missing)"
        if missing == [_HEAD]:
            return unsupported(
                found, "a complete checkpoint, or tie_word_embeddings: true if the model has a tied head"
            )
        if not others:
            return unsupported(found, "a complete checkpoint")
        about, needed = foreign_names(self._files)
        return unsupported(f"{found}; {about}", needed)

    @property
    def is_stored_in_float16(self) -> bool:
        """Whether every weight is stored in float16, so that the model was made for its range."""
        return self._dtypes == {"F16"}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every weight, by stored name."""
        return dict(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a weight as it is read."""
        stored = self._shapes[self._stored_names[name]]
        return stored[::-1] if name in self._transposed else stored

    def read(self, name: str) -> Tensor:
        """Return a weight in float16, on the CPU; a linear one as (out_features, in_features).

        Raises:
            UnsupportedModel: The file is damaged or has been replaced, or a value is not finite in float16.
        """
        stored = self._stored_names[name]
        try:
            with self._folder.open(self._files[stored]) as file, safetensors.safe_open(file.path, "pt") as opened:
                tensor = opened.get_tensor(self._keys[stored])
                if tuple(tensor.shape) != self._shapes[stored]:
                    raise unsupported(f"weight {stored} has another shape than before", "files that nobody changes")
                return _to_float16(stored, tensor.T.contiguous() if name in self._transposed else tensor)
        except safetensors.SafetensorError as error:
            raise unsupported(f"{self._files[stored]}: {error}", "an undamaged file that nobody changes") from error

    def __contains__(self, name: str) -> bool:
        return name in self._stored_names


def _to_float16(name: str, tensor: Tensor) -> Tensor:
    if not torch.isfinite(tensor).all():
        raise unsupported(f"weight {name} holds NaN or infinite values", "finite weights")
    rounded = tensor.to(torch.float16)
    if not torch.isfinite(rounded).all():
        largest = float(tensor.abs().max())
        raise unsupported(f"weight {name} holds {largest:g}", "weights within ±65504, the range of float16")
    return rounded
