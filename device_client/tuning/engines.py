"""Which engine makes a run's steps, and what is checked before the first of them.

    zeroth-order    ε must survive rounding; the noise floor of a loss difference is measured, but not of a metric's,
                    and refused where products in bfloat16 leave nothing of it
    first-order     nothing

The one place that knows both. Costs eight forward passes for zeroth order, sixteen with products in bfloat16.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from device_client.model.backends.choose import BackendOptions
from device_client.model.sparse_model import SparseModel
from device_client.model.tunable_model import TunableModel
from device_client.planning.methods import TunedPart
from device_client.tasks.scoring import Objective
from device_client.tuning.adam import Adam
from device_client.tuning.answer_gradient import AnswerGradient
from device_client.tuning.fidelity import check_fidelity, noise_floor
from device_client.tuning.first_order import FirstOrder
from device_client.tuning.journal import JournalHeader
from device_client.tuning.measured_step import RESOLVED, MeasuredStep
from device_client.tuning.metric_step import MetricStep
from device_client.tuning.model_problem import ModelProblem
from device_client.tuning.perturbations import PerturbationStream, drawing_of
from device_client.tuning.schedules import ChosenScale, Scale, StepSizeSchedule
from device_client.tuning.settings import TuneSettings
from device_client.tuning.smaller_batches import with_smaller_batches
from device_client.tuning.step_engine import StepEngine
from device_client.tuning.zeroth_order import ZerothOrder
from shared.perturbation import STREAM_NAMES

_NOISE_DIRECTIONS = 2
_CHECKED_DIRECTIONS = 4
"""Where a run may be refused for its noise: a few differences are small by chance."""
_SPACINGS_TO_RESOLVE = 10
"""Of a 16-bit format's relative spacings, as a share of the loss, that a second difference should be clear of; where
only products are rounded, one."""


@dataclass(frozen=True, slots=True)
class ReadyEngine:
    """An engine, fresh.

    Attributes:
        engine: Makes the steps.
        findings: What was measured beforehand, for resources.json.
    """

    engine: StepEngine
    findings: dict[str, Any] = field(default_factory=dict)


def make_engine(
    settings: TuneSettings,
    model: SparseModel,
    tuned: TunableModel,
    part: TunedPart,
    problem: ModelProblem[Any],
    objective: Objective | None,
    backend: BackendOptions,
    shrunk: Callable[[], None],
) -> ReadyEngine:
    """Return what makes a run's steps.

    Args:
        settings: The run's.
        model: At its own values.
        tuned: What is tuned of it.
        part: What that is.
        problem: Over the same part; its goal has a gradient where one is asked for.
        objective: Which loss; None where rows have no answer.
        backend: What draws perturbations.
        shrunk: Is told when memory ran out and fewer sequences run side by side.

    Raises:
        InvalidRequest: ε is too small for the compute format.
        ResourceError: A single sequence does not fit the memory.
    """
    if settings.gradient == "first-order" and objective is not None:
        adam = Adam(part.value_count, model.device)
        gradient = AnswerGradient(model, objective, part.blocks)
        return ReadyEngine(FirstOrder(problem, gradient, adam, settings))
    drawing = drawing_of(settings.distribution, backend)
    draw = PerturbationStream(settings.seed, part.value_count, drawing, model.device)
    theta = tuned.initial_theta()
    value_rms = rms(theta)
    settings = with_epsilon(settings, value_rms)
    epsilon = settings.epsilon
    lost_share = check_fidelity(theta, draw(0, 0), epsilon, model.compute_dtype)
    schedule = StepSizeSchedule(settings, scale_of(settings, theta.numel(), value_rms, _resolved(model)))
    findings: dict[str, Any] = {"perturbation_lost_share": lost_share, "epsilon": epsilon}
    if settings.metric is None:
        is_rounded = model.products == "bfloat16"
        directions = [draw(step, 0) for step in range(_CHECKED_DIRECTIONS if is_rounded else _NOISE_DIRECTIONS)]
        floor = with_smaller_batches(
            lambda: noise_floor(problem.losses, theta, directions, epsilon, problem.batch(0)), problem, shrunk
        )
        if is_rounded:
            floor.check(epsilon)
        findings["noise_floor"] = floor.noise if math.isfinite(floor.noise) else None
    return ReadyEngine(ZerothOrder(problem, draw, schedule, settings), findings)


def journal_header(settings: TuneSettings, part: TunedPart, bundle_digest: str, digest: str) -> JournalHeader:
    """Return what the journal of a run says of itself; first order draws nothing.

    Args:
        settings: The run's.
        part: What is tuned.
        bundle_digest: The bundle.
        digest: Of everything that decides the run.
    """
    draws = settings.gradient == "zeroth-order"
    return JournalHeader(
        seed=settings.seed,
        stream=STREAM_NAMES[settings.distribution] if draws else "none",
        distribution=settings.distribution if draws else "none",
        sensitive_count=part.value_count,
        queries=settings.queries if draws else 1,
        epsilon=settings.epsilon if draws and settings.epsilon_share is None else 0.0,
        bundle_digest=bundle_digest,
        settings_digest=digest,
        blocks=part.blocks.name,
        is_measured=settings.is_step_measured,
    )


def rms(theta: Tensor) -> float:
    """Return the root mean square of values, computed in float64."""
    return float(theta.double().square().mean().sqrt())


def with_epsilon(settings: TuneSettings, value_rms: float) -> TuneSettings:
    """Return the settings with ε as a number, where it is a share of the values' size."""
    if settings.epsilon_share is None:
        return settings
    return replace(settings, epsilon=settings.epsilon_share * value_rms)


def scale_of(settings: TuneSettings, count: int, value_rms: float, resolved: float = RESOLVED) -> Scale:
    """Return where η comes from.

    Args:
        settings: The run's.
        count: How many values θ has.
        value_rms: rms(θ₀).
        resolved: ε²·t as a share of the loss that is clear of rounding; decides ε alone.
    """
    if not settings.is_step_automatic:
        return ChosenScale(settings, count)
    if settings.metric is not None:
        return MetricStep(settings, value_rms)
    return MeasuredStep(settings, value_rms, resolved)


def _resolved(model: SparseModel) -> float:
    if model.products == "bfloat16":
        return torch.finfo(torch.bfloat16).eps
    return max(RESOLVED, _SPACINGS_TO_RESOLVE * torch.finfo(model.compute_dtype).eps)
