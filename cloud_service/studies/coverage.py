"""How much of a task's sensitivity a mask covers, before and during fine-tuning: Figures 3 and 8 of the paper.

    share(m) = mean over linear weights W of  Σ_{i ∈ m_W} F_i / Σ_{i ∈ W} F_i        ± standard deviation over them

Symbols: F the Fisher diagonal (Equation 8) of the *measuring* rows of the task at the step looked at · m_W the top
1e-2, 1e-3 or 1e-4 of W's weights, ordered by one of

    text_static     the Fisher diagonal of a text (C4) at the start: what a bundle is made with
    task_static     that of the *selecting* rows of the task at the start
    task_dynamic    that of the selecting rows at the step looked at
    in_sample       that of the measuring rows themselves: the largest possible share, and the "task grad, dyn." of
                    Figure 3, which selects and measures on the same gradients
    magnitude       |w| at the start
    random          nothing: the expected share is the fraction itself

Selecting and measuring rows are different rows: a mask that fits the noise of few rows would else look better than it
is. The text's ranking is given. Costs one backward pass per selecting and measuring row at every moment looked at; 4
bytes per weight for one Fisher diagonal at a time, beside the weights, and 4 bytes per weight of each top 1e-2.
Knows nothing about files, options or pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cloud_service.pipeline.calibration.sequences import Calibration
from cloud_service.pipeline.fisher.select_sensitive import Masks, select_largest, select_random, sensitive_count
from cloud_service.pipeline.fisher.squared_gradients import not_finite, sum_squares, zero_sums
from cloud_service.studies.first_order import FirstOrderSettings, FirstOrderTuner, mean_answer_loss

FRACTIONS = (1e-2, 1e-3, 1e-4)
"""The fractions of Figure 3, largest first."""

Criterion = Literal["text_static", "task_static", "task_dynamic", "in_sample", "magnitude", "random"]
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)

OVERLAPS: tuple[tuple[Criterion, Criterion], ...] = (
    ("text_static", "task_static"),
    ("text_static", "task_dynamic"),
    ("task_static", "task_dynamic"),
    ("task_dynamic", "in_sample"),
    ("magnitude", "task_static"),
)
"""Pairs of masks that are compared; the fourth is the split-half overlap of the task's own: the most to hope for."""

Ranking = Mapping[str, NDArray[np.int32]]
"""The chosen weights of every tensor, most sensitive first: masks of smaller fractions are its beginnings."""


@dataclass(frozen=True, slots=True)
class CoverageData:
    """The task rows that gradients are taken on.

    Attributes:
        selecting: Those that masks are chosen by.
        measuring: Others, that coverage is measured on.
        training: Those to fine-tune on; unused where no step is taken.
    """

    selecting: Calibration
    measuring: Calibration
    training: Calibration


@dataclass(frozen=True, slots=True)
class Share:
    """Covered share of the task's Fisher diagonal: mean and standard deviation over the linear weights, 0 … 1."""

    mean: float
    std: float


@dataclass(frozen=True, slots=True)
class Moment:
    """What was measured after so many steps.

    Attributes:
        step: Steps of fine-tuning before.
        loss: Mean loss of the measuring rows' answers, nats per token.
        shares: Criterion → covered share for each fraction.
        overlaps: Pair of criteria → share of the mask's weights that both chose, for each fraction.
    """

    step: int
    loss: float
    shares: Mapping[Criterion, tuple[Share, ...]]
    overlaps: Mapping[tuple[Criterion, Criterion], tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class Coverage:
    """The measurement.

    Attributes:
        fractions: Shares of each tensor's weights that were looked at, largest first.
        tensor_count: Linear weights averaged over.
        weight_count: Their elements.
        moments: In order of steps; the first is before any step.
    """

    fractions: tuple[float, ...]
    tensor_count: int
    weight_count: int
    moments: tuple[Moment, ...]


def measure_coverage(
    network: nn.Module,
    weights: Mapping[str, nn.Parameter],
    text: Ranking,
    data: CoverageData,
    *,
    moments: Sequence[int] = (0,),
    tuning: FirstOrderSettings | None = None,
    recomputed_blocks: Sequence[nn.Module] = (),
    after_pass: Callable[[], None] = lambda: None,
) -> Coverage:
    """Measure the coverage at the start and after some steps; the network is fine-tuned in place.

    Args:
        network: The model, without dropout; in float32 where steps are taken.
        weights: Its linear weights, by name.
        text: The weights' ranking by the Fisher diagonal of the text, at the start; see ``rank_largest``.
        data: The rows.
        moments: Steps to look at, increasing from 0.
        tuning: How to fine-tune; None is the default of ``FirstOrderSettings``.
        recomputed_blocks: As of ``fisher.sum_squares``.
        after_pass: Called after each backward pass; see ``count_passes``.

    Raises:
        UnsupportedModel: A loss or gradient is not finite.
        Diverged: The loss of a step is not finite.
    """
    tuning = tuning or FirstOrderSettings()

    def rank(calibration: Calibration) -> tuple[dict[str, Tensor], Ranking]:
        sums = zero_sums(weights)
        sum_squares(
            network, weights, calibration, range(len(calibration)), sums,
            recomputed_blocks=recomputed_blocks, after_sequence=after_pass,
        )  # fmt: skip
        return sums, rank_largest(sums.items())

    rankings: dict[Criterion, Ranking] = {
        "text_static": text,
        "magnitude": rank_largest((name, weight.detach().float().abs()) for name, weight in weights.items()),
        "random": _ranked(
            select_random({name: w.numel() for name, w in weights.items()}, FRACTIONS[0], "per_tensor", tuning.seed)
        ),
    }
    tuner = FirstOrderTuner(network, weights, data.training, tuning)

    def look(step: int) -> Moment:
        tuner.run_until(step, after_row=after_pass)
        rankings["task_dynamic"] = rank(data.selecting)[1]
        rankings.setdefault("task_static", rankings["task_dynamic"])
        fisher, rankings["in_sample"] = rank(data.measuring)
        return _moment(step, mean_answer_loss(network, data.measuring), fisher, rankings)

    found = tuple(look(step) for step in moments)
    return Coverage(FRACTIONS, len(weights), sum(weight.numel() for weight in weights.values()), found)


def count_passes(data: CoverageData, moments: Sequence[int], tuning: FirstOrderSettings) -> int:
    """Return how many backward passes ``measure_coverage`` makes."""
    batch = min(tuning.batch, len(data.training))
    return len(moments) * (len(data.selecting) + len(data.measuring)) + max(moments) * batch


def rank_largest(tensors: Iterable[tuple[str, Tensor]], fraction: float = FRACTIONS[0]) -> Ranking:
    """Return the largest ``fraction`` of every tensor's values, largest first."""
    masks: Masks = {}
    for name, values in tensors:
        if not torch.isfinite(values).all():
            raise not_finite(f"a value of {name}")
        masks |= select_largest({name: values}, fraction, "per_tensor")
    return _ranked(masks)


def covered_shares(
    fisher: Mapping[str, Tensor], ranking: Ranking, fractions: Sequence[float] = FRACTIONS
) -> tuple[Share, ...]:
    """Return the share of each tensor's Σ F that the top of ``ranking`` covers, averaged over the tensors.

    Args:
        fisher: Sums of squared gradients, not negative, by tensor name; their scale does not matter.
        ranking: The weights to cover it with.
        fractions: Shares of each tensor's weights; k is rounded half to even and may be 0 in a tiny tensor.
    """
    rows = [_tensor_shares(values.flatten(), ranking[name], fractions) for name, values in fisher.items()]
    means, deviations = np.mean(rows, axis=0), np.std(rows, axis=0)
    return tuple(Share(float(mean), float(std)) for mean, std in zip(means, deviations, strict=True))


def ranking_overlap(first: Ranking, second: Ranking, sizes: Mapping[str, int], fraction: float) -> float:
    """Return the share of the first's top weights that are among the second's, 0 … 1; 0 where there are none."""
    counts = {name: sensitive_count(size, fraction) for name, size in sizes.items()}
    common = sum(len(np.intersect1d(first[name][:k], second[name][:k])) for name, k in counts.items())
    total = sum(counts.values())
    return common / total if total else 0.0


def _moment(step: int, loss: float, fisher: Mapping[str, Tensor], rankings: Mapping[Criterion, Ranking]) -> Moment:
    sizes = {name: values.numel() for name, values in fisher.items()}
    return Moment(
        step,
        loss,
        {criterion: covered_shares(fisher, rankings[criterion]) for criterion in CRITERIA},
        {
            (one, other): tuple(ranking_overlap(rankings[one], rankings[other], sizes, f) for f in FRACTIONS)
            for one, other in OVERLAPS
        },
    )


def _tensor_shares(values: Tensor, ranked: NDArray[np.int32], fractions: Sequence[float]) -> list[float]:
    total = float(values.sum(dtype=torch.float64))
    chosen = values[torch.from_numpy(ranked).long().to(values.device)]
    sums = torch.cumsum(chosen, dim=0, dtype=torch.float64).tolist()
    counts = [sensitive_count(values.numel(), fraction) for fraction in fractions]
    return [sums[count - 1] / total if count and total else 0.0 for count in counts]


def _ranked(masks: Masks) -> Ranking:
    return {name: mask.indices[np.argsort(mask.rank)] for name, mask in masks.items()}
