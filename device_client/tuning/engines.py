"""Which engine makes a run's steps, and what is checked before the first of them.

    zeroth-order    ε must survive rounding; the noise floor of a loss difference is measured
    first-order     nothing

The one place that knows both. Costs eight forward passes for zeroth order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from device_client.model.backends.choose import BackendOptions
from device_client.model.sparse_model import SparseModel
from device_client.model.upper_blocks import UpperBlocks
from device_client.planning.tuned_blocks import TunedBlocks
from device_client.tasks.scoring import Objective
from device_client.tuning.adam import Adam
from device_client.tuning.answer_gradient import AnswerGradient
from device_client.tuning.fidelity import check_fidelity, noise_floor
from device_client.tuning.first_order import DEFAULT_LR, FirstOrder
from device_client.tuning.journal import JournalHeader
from device_client.tuning.model_problem import ModelProblem
from device_client.tuning.perturbations import PerturbationStream, drawing_of
from device_client.tuning.schedules import StepSizeSchedule
from device_client.tuning.smaller_batches import with_smaller_batches
from device_client.tuning.step_engine import StepEngine
from device_client.tuning.zeroth_order import ZerothOrder
from shared.perturbation import STREAM_NAMES

if TYPE_CHECKING:
    from device_client.tuning.tune_run import TuneSettings

_NOISE_DIRECTIONS = 2


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
    tuned: SparseModel | UpperBlocks,
    blocks: TunedBlocks,
    problem: ModelProblem,
    objective: Objective,
    backend: BackendOptions,
    shrunk: Callable[[], None],
) -> ReadyEngine:
    """Return what makes a run's steps.

    Args:
        settings: The run's.
        model: At its own values.
        tuned: The part of it that is tuned.
        blocks: Which blocks that is.
        problem: Over the same part.
        objective: Which loss.
        backend: What draws perturbations.
        shrunk: Is told when memory ran out and fewer sequences run side by side.

    Raises:
        InvalidRequest: ε is too small for the compute format.
        ResourceError: A single sequence does not fit the memory.
    """
    if settings.gradient == "first-order":
        adam = Adam(tuned.sensitive_count, model.device)
        lr = DEFAULT_LR if settings.lr is None else settings.lr
        gradient = AnswerGradient(model, objective, blocks)
        return ReadyEngine(FirstOrder(problem, gradient, adam, lr=lr, steps=settings.steps, decay=settings.decay))
    drawing = drawing_of(settings.distribution, backend)
    draw = PerturbationStream(settings.seed, tuned.sensitive_count, drawing, model.device)
    theta, epsilon = tuned.initial_theta(), settings.epsilon
    lost_share = check_fidelity(theta, draw(0, 0), epsilon, model.compute_dtype)
    noise = with_smaller_batches(lambda: _noise_floor(problem, theta, draw, epsilon), problem, shrunk)
    schedule = StepSizeSchedule(
        steps=settings.steps,
        lr=settings.lr,
        step_length=settings.step_length,
        sensitive_count=tuned.sensitive_count,
        decay=settings.decay,
        clip_multiple=settings.clip_multiple,
    )
    findings = {"perturbation_lost_share": lost_share, "noise_floor": noise if math.isfinite(noise) else None}
    return ReadyEngine(ZerothOrder(problem, draw, schedule, epsilon, settings.queries), findings)


def journal_header(settings: TuneSettings, blocks: TunedBlocks, bundle_digest: str, digest: str) -> JournalHeader:
    """Return what the journal of a run says of itself; first order draws nothing.

    Args:
        settings: The run's.
        blocks: Which blocks are tuned.
        bundle_digest: The bundle.
        digest: Of everything that decides the run.
    """
    draws = settings.gradient == "zeroth-order"
    return JournalHeader(
        seed=settings.seed,
        stream=STREAM_NAMES[settings.distribution] if draws else "none",
        distribution=settings.distribution if draws else "none",
        sensitive_count=blocks.value_count,
        queries=settings.queries if draws else 1,
        epsilon=settings.epsilon if draws else 0.0,
        bundle_digest=bundle_digest,
        settings_digest=digest,
        blocks=blocks.name,
    )


def _noise_floor(problem: ModelProblem, theta: Tensor, draw: PerturbationStream, epsilon: float) -> float:
    """Measure it with the first batch, along the first steps' directions."""
    directions = [draw(step, 0) for step in range(_NOISE_DIRECTIONS)]
    return noise_floor(problem.losses, theta, directions, epsilon, problem.batch(0))
