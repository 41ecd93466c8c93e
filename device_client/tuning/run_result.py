"""What a run came to: its values judged on the same rows, and the files that say so.

The bundle's own, the last and the best values are evaluated on the validation and test rows, beside what needs no
tuning (zero-shot, calibrated, rows in the prompt). result.json is a function of bundle, rows and settings;
resources.json of the machine.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import Any, Literal

from torch import Tensor

from device_client.model.kept_states import KeptStates
from device_client.model.sparse_model import SparseModel
from device_client.tuning.baselines import Room, baselines
from device_client.tuning.curve import draw_curve
from device_client.tuning.evaluation import Evaluation
from device_client.tuning.journal import StepFlags
from device_client.tuning.loop_interface import Outcome
from device_client.tuning.model_problem import ModelProblem
from device_client.tuning.planned_run import PlannedRun
from device_client.tuning.run_answers import Judged
from device_client.tuning.run_directory import RESULT, RunDirectory
from shared.tasks.examples import Example

RESOURCES, CURVE = "resources.json", "loss.svg"

Stage = Literal["bundle", "start", "last", "best"]
"""``start`` is θ before any step, where that is not the bundle itself."""


def run_result(
    planned: PlannedRun,
    model: SparseModel,
    problem: ModelProblem[Any],
    theta: Tensor,
    outcome: Outcome,
    kept: KeptStates,
) -> tuple[dict[str, Any], Judged]:
    """Return what stands in result.json, but for the engine's own account; and the rows that the run is judged by.

    Args:
        planned: The run.
        model: Of the bundle.
        problem: What was minimised.
        theta: float32 (k,), where the run began.
        outcome: Of the loop.
        kept: Hidden states below the tuned blocks; closed while prompts are measured that come once.
    """
    validations, begins_as_bundle = outcome.validations, planned.part.method.begins_as_bundle
    first: Stage = "bundle" if begins_as_bundle else "start"
    on_validation: dict[Stage, Evaluation] = {
        first: validations[0],
        # A run that its time budget stopped is evaluated for the report alone.
        "last": validations.get(outcome.steps_done) or problem.validate(outcome.last),
        "best": validations[outcome.best_step],
    }
    result: dict[str, Any] = {
        "steps_done": outcome.steps_done,
        "best_step": outcome.best_step,
        "stopped_by": outcome.stopped_by,
        "objective": planned.objective,
        "blocks": planned.part.blocks.name,
        "method": planned.part.method.name,
        "tuned_values": planned.part.value_count,
        **planned.part.method.recorded,
        "clipped_steps": sum(StepFlags.CLIPPED in record.flags for record in outcome.records),
        "skipped_steps": sum(StepFlags.SKIPPED in record.flags for record in outcome.records),
        "truncated_rows": sum(example.truncated_tokens > 0 for example in planned.data.training),
        "validation": {stage: found.as_json() for stage, found in on_validation.items()},
    }
    judged = on_validation
    if planned.data.test:
        values: dict[Stage, Tensor] = {first: theta, "last": outcome.last, "best": outcome.best.to(theta.device)}
        judged = {stage: problem.evaluate(value, planned.data.test) for stage, value in values.items()}
        result["test"] = {stage: found.as_json() for stage, found in judged.items()}
    parts = {"validation": planned.data.validation, "test": planned.data.test}
    judged_by = "test" if planned.data.test else "validation"
    bundle, own = problem, theta
    with ExitStack() as stack:
        if not begins_as_bundle:
            stack.enter_context(model.as_published())
            bundle = planned.problem(model, model.tokenizer, None, problem.micro_batch_rows)
            own = model.initial_theta()
            for part in (name for name, examples in parts.items() if examples):
                found = bundle.evaluate(own, parts[part])
                result[part]["bundle"] = found.as_json()
                judged |= {"bundle": found} if part == judged_by else {}
        if planned.objective == "candidates" and outcome.stopped_by != "time budget":  # else it is not finished
            stack.enter_context(kept.closed())  # prompts with rows in front of them come once
            result[judged_by] |= _baselines(planned, bundle, own, parts[judged_by])
    return result, Judged(judged_by, judged["bundle"], judged["best"])


def write_outcome(run: RunDirectory, outcome: Outcome, result: dict[str, Any], resources: dict[str, Any]) -> None:
    """Write curve, resources and result; result.json last, for it says that the run is finished."""
    training = [record.clean_loss for record in outcome.records]
    validation = [(step, found.cost) for step, found in outcome.validations.items() if math.isfinite(found.cost)]
    metric = result.get("metric")
    if metric is None:
        run.write_bytes(CURVE, draw_curve(training, validation))
    else:
        scores = [(step, -cost) for step, cost in validation]
        run.write_bytes(CURVE, draw_curve([-cost for cost in training], scores, metric))
    run.write_json(RESOURCES, resources)
    run.write_json(RESULT, result)


def _baselines(planned: PlannedRun, problem: ModelProblem[Any], theta: Tensor, judged: list[Example]) -> dict[str, Any]:
    data = planned.data
    every = [*data.training, *data.validation, *data.test]
    return baselines(
        lambda examples, micro_batch_rows: problem.choice_scores(theta, examples, micro_batch_rows),
        data.training,
        judged,
        data.prompts.tokenizer,
        Room(problem.micro_batch_rows, max(example.token_count for example in every)),
        seed=planned.settings.seed,
    )
