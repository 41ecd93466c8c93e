"""Points θ to evaluate a model at, which need not exist as a whole: at 7B each is a vector of 26 MB."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

_VALUES_IN_CACHE = 1 << 17


class Point(Protocol):
    """θ, float32 (k,), of which parts can be taken; a tensor is one."""

    @property
    def shape(self) -> torch.Size:
        """(k,)."""

    @property
    def dtype(self) -> torch.dtype:
        """float32."""

    def __getitem__(self, where: slice, /) -> Tensor:
        """Return these values of θ."""


@dataclass(frozen=True, slots=True)
class PerturbedPoint:
    """θ + s·z, computed where it is taken.

    Attributes:
        theta: float32 (k,).
        z: float32 (k,).
        signed_epsilon: s, which is ε or −ε.
    """

    theta: Tensor
    z: Tensor
    signed_epsilon: float

    @property
    def shape(self) -> torch.Size:
        """(k,)."""
        return self.theta.shape

    @property
    def dtype(self) -> torch.dtype:
        """float32."""
        return self.theta.dtype

    def __getitem__(self, where: slice) -> Tensor:
        """Return some of its values, float32; all of them for ``[:]``."""
        step = self.z[where] * self.signed_epsilon
        return torch.add(self.theta[where], step, out=step)  # two roundings on any machine, where alpha= may fuse


WritePoints = Callable[[Sequence[Point], Tensor], None]
"""Writes the values of every point to ``out`` (points, k), each rounded once to its dtype."""


def write_points(thetas: Sequence[Point], out: Tensor) -> None:
    """Write the values of every θ to ``out`` (points, k), each rounded once to its dtype; in plain torch."""
    count = out.shape[1]
    at_once = _VALUES_IN_CACHE if out.device.type == "cpu" else max(1, count)
    for begin in range(0, count, at_once):
        part = slice(begin, begin + at_once)
        for values, theta in zip(out, thetas, strict=True):
            values[part].copy_(theta[part].detach())
