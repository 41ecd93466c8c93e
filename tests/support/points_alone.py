"""Whether points side by side have the bits that each has alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from device_client.model.token_batch import TokenBatch
from device_client.tuning.model_problem import PointsModel


def assert_points_keep_their_bits(model: PointsModel, batch: TokenBatch, thetas: Sequence[Tensor]) -> None:
    """Compare the logits at points side by side with those at each; the first two points must differ."""
    model.write_points(thetas)
    together = model.logits(batch)

    for theta, at_point in zip(thetas, together, strict=True):
        model.write_points([theta])
        assert torch.equal(model.logits(batch)[0], at_point)
    assert not torch.equal(together[0], together[1])


def offset_points(initial: Tensor) -> list[Tensor]:
    """Return three points: on either side of the bundle's own values, and those."""
    return [initial + offset for offset in (0.5, -0.5, 0.0)]
