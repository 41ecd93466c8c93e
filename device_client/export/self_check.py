"""Compares an exported folder with the run that it was made from: plain transformers' logits against the device's own.

The folder is read as a stranger would read it: config.json, the class that transformers lists for it, tokenizer.json,
the weight files. Its weights are widened to float32, so that what differs is what rounding them has cost.
Each module's weights are read when it computes and dropped after it, so that a model of any size takes the memory of
its largest weight; the run's own model takes what it takes to generate.
Costs two forward passes over a short text.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from torch import Tensor, nn

from device_client.export.subject import Subject
from device_client.export.weight_files import stored_names
from device_client.model.open import Machine, open_for_text
from device_client.model.token_batch import TokenBatch
from device_client.tuning.tuned_values import answer_as_tuned
from shared.architecture import family_of
from shared.checkpoint_files import INDEX_NAME
from shared.errors import IntegrityError
from shared.model.network import network_without_weights

TEXT = (
    "In 1969 two people walked on the Moon for the first time. They stayed outside for about two and a half hours, "
    'collected 21.5 kilograms of stones, and said: "We came in peace." How long does light take from there? 1.3 s.'
)
_MOST_TOKENS = 64
_MOST_OF_LARGEST = 0.1


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the two make of one text.

    Attributes:
        max_logit_difference: Largest difference of a logit.
        largest_logit: Largest logit of the run's own, by magnitude: what the difference is to be compared with.
        same_likeliest_tokens: Positions at which both find the same token likeliest.
        positions: Positions in all.
    """

    max_logit_difference: float
    largest_logit: float
    same_likeliest_tokens: int
    positions: int


def check(folder: Path, subject: Subject, machine: Machine) -> Comparison:
    """Return how an exported folder differs from what it was made from; refuse it where that is another model.

    Args:
        folder: Whole.
        subject: What it was made from.
        machine: Runs it.

    Raises:
        IntegrityError: The folder's tokenizer gives other tokens, or its logits are others than rounding explains.
    """
    own = _own_logits(subject, machine)
    logits = plain_logits(folder, own.ids)
    found = Comparison(
        max_logit_difference=float((logits - own.logits).abs().max()),
        largest_logit=float(own.logits.abs().max()),
        same_likeliest_tokens=int((logits.argmax(dim=1) == own.logits.argmax(dim=1)).sum()),
        positions=len(own.ids),
    )
    if not found.max_logit_difference <= _MOST_OF_LARGEST * found.largest_logit:
        raise IntegrityError(
            f"plain transformers computes other logits from the export: they differ by {found.max_logit_difference:.3g}"
            f" where the largest is {found.largest_logit:.3g}",
            needed=f"a difference below {_MOST_OF_LARGEST:.0%} of it, which rounding to 16 bits explains",
            next_step="report it with the model's name; --no-check writes the folder all the same",
        )
    return found


@dataclass(frozen=True, slots=True)
class _Own:
    ids: list[int]
    logits: Tensor


def _own_logits(subject: Subject, machine: Machine) -> _Own:
    tuned = subject.tuned
    model = open_for_text(subject.bundle, machine, "sparse" if tuned is None else tuned.part.method.name)
    if tuned is not None:
        answer_as_tuned(tuned.directory, model)
    ids = model.tokenizer.encode_prompt(TEXT)[: min(_MOST_TOKENS, model.tokenizer.context_length)]
    tokens, places = torch.tensor([ids]), torch.arange(len(ids))
    batch = TokenBatch(tokens, torch.ones_like(tokens), torch.zeros_like(places), places)
    return _Own(ids, model.logits(batch)[0].cpu())


def plain_logits(folder: Path, ids: list[int]) -> Tensor:
    """Return what plain transformers makes of tokens, float32 (tokens, vocabulary).

    Raises:
        IntegrityError: The folder's tokenizer does not give these ids, or a weight is missing.
    """
    found = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(TEXT).ids[: len(ids)]
    if found != ids:
        raise IntegrityError(
            f"the tokenizer in {folder} gives other tokens than the bundle's",
            next_step="report this: the export is of no use",
        )
    config = json.loads((folder / "config.json").read_bytes())
    family = family_of(config, allow_untested=True)
    fields = {key: value for key, value in config.items() if key != "torch_dtype"}
    network = network_without_weights(dataclasses.replace(family, attention=None), fields).eval()
    files = _CheckpointFiles(folder)
    names = stored_names(family, [name for name, _ in network.named_parameters()])
    by_identity = {id(parameter): names[name] for name, parameter in network.named_parameters()}
    for module in network.modules():
        own = {name: by_identity[id(value)] for name, value in module.named_parameters(recurse=False)}
        if own:
            module.register_forward_pre_hook(_placing(own, files.read))
            module.register_forward_hook(_dropping(dict(module.named_parameters(recurse=False))))
    with torch.no_grad():
        logits: Tensor = network(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    return logits.float()


class _CheckpointFiles:
    """Weights of a folder, read one by one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        index = folder / INDEX_NAME
        self._places = json.loads(index.read_bytes())["weight_map"] if index.exists() else {}

    def read(self, name: str) -> Tensor:
        with safe_open(str(self._folder / self._places.get(name, "model.safetensors")), framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor.float()


def _placing(own: dict[str, str], read: Callable[[str], Tensor]) -> Callable[..., None]:
    def place(module: nn.Module, *_: Any) -> None:
        for attribute, name in own.items():
            setattr(module, attribute, nn.Parameter(read(name), requires_grad=False))

    return place


def _dropping(empty: dict[str, nn.Parameter]) -> Callable[..., None]:
    def drop(module: nn.Module, *_: Any) -> None:
        for attribute, parameter in empty.items():
            setattr(module, attribute, parameter)

    return drop
