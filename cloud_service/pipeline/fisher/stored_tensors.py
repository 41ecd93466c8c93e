"""Tensors by name that are loaded one at a time, each time they are asked for.

What does not fit in memory at once (4 bytes per weight of a 7B model are 26 GB) is gone through like a dictionary.
Costs one tensor while it is in use. Knows nothing about what the tensors are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from torch import Tensor


class StoredTensors(Mapping[str, Tensor]):
    """A mapping that calls ``load`` at every access and keeps nothing.

    Args:
        names: The keys, in order.
        load: Returns the tensor of a name.
    """

    def __init__(self, names: Iterable[str], load: Callable[[str], Tensor]) -> None:
        self._names = dict.fromkeys(names)
        self._load = load

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._load(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
