"""Which decoder block a weight belongs to, by its name: ``model.layers.3.mlp.up_proj.weight`` is in block 3.

The names of a checkpoint of the bare decoder lack the first part of the path (``layers.3.…``). Of an untested family
the path is what stands before the number in most names. Costs one match for each name. Imports no torch.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from shared.model_families import ModelFamily

_NUMBERED = re.compile(r"((?:[A-Za-z_]\w*\.)+)(\d{1,6})\.")


def decoder_path(family: ModelFamily, names: Iterable[str]) -> str:
    """Return the dotted path of the list of decoder blocks; empty where the names show none.

    Args:
        family: The model's family.
        names: The names of all stored weights.
    """
    if family.decoder_blocks:
        return family.decoder_blocks
    paths = Counter(match[1].rstrip(".") for name in names if (match := _NUMBERED.match(name)))
    return max(paths, key=lambda path: paths[path], default="")


def block_index(name: str, path: str) -> int | None:
    """Return the index of the decoder block that a weight belongs to, or None.

    Args:
        name: The weight's name, with or without the base model's prefix.
        path: The path of the list of decoder blocks.
    """
    short = path.partition(".")[2] or path
    match = re.match(rf"(?:\w+\.)?{re.escape(short)}\.(\d{{1,6}})\.", name)
    return int(match[1]) if match else None
