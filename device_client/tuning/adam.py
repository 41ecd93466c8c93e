"""Adam on one flat vector, whose state can be kept and taken up again to the bit.

    m ← β₁ m + (1−β₁) ∇          v ← β₂ v + (1−β₂) ∇²
    θ ← θ − η · (m / (1−β₁ⁿ)) / (√(v / (1−β₂ⁿ)) + 1e-8)

Symbols: ∇ the gradient · n steps made, this one included · m, v ``first`` and ``second`` moments, float32 (k,). Every
product, sum, quotient and root is one float32 operation in a fixed order, never fused. Holds two vectors of k float32,
and two more while it moves θ. Knows nothing about losses or files.
Reference: Kingma and Ba 2015, Algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from shared.errors import IntegrityError

FIRST_DECAY, SECOND_DECAY = 0.9, 0.999
_LEAST_ROOT = 1e-8


class Adam:
    """The moments of a run's gradients.

    Args:
        count: k.
        device: Where θ lies.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        self._steps = 0
        self._first = torch.zeros(count, dtype=torch.float32, device=device)
        self._second = torch.zeros(count, dtype=torch.float32, device=device)

    def descend(self, theta: Tensor, gradient: Tensor, lr: float) -> Tensor:
        """Return the next θ; ``theta`` is left as it is, ``gradient`` is used up.

        Args:
            theta: float32 (k,).
            gradient: float32 (k,).
            lr: η.
        """
        self._steps += 1
        self._first.mul_(FIRST_DECAY).add_(gradient * (1 - FIRST_DECAY))
        self._second.mul_(SECOND_DECAY).add_(gradient.square_().mul_(1 - SECOND_DECAY))
        root = torch.sqrt(self._second).div_(math.sqrt(1 - SECOND_DECAY**self._steps)).add_(_LEAST_ROOT)
        step = torch.div(self._first, root, out=root).mul_(lr / (1 - FIRST_DECAY**self._steps))
        return torch.sub(theta, step, out=step)

    def state(self) -> dict[str, Tensor]:
        """Return moments and steps by name; the moments are the living ones."""
        return {"adam_first": self._first, "adam_second": self._second, "adam_steps": torch.tensor([self._steps])}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go back to what ``state`` returned.

        Raises:
            IntegrityError: Something else is kept there.
        """
        now = self.state()
        if state.keys() != now.keys() or any(
            (kept.shape, kept.dtype) != (now[name].shape, now[name].dtype) for name, kept in state.items()
        ):
            raise IntegrityError("a snapshot without Adam's moments", next_step="run the same tune command again")
        self._first.copy_(state["adam_first"])
        self._second.copy_(state["adam_second"])
        self._steps = int(state["adam_steps"].item())
