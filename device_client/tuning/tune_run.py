"""One fine-tune from a bundle and rows to a finished run folder.

Order: rows · settings and their digest · run folder · model · fidelity of the perturbation · the loop · evaluation of
the bundle's own, the last and the best values on the same rows · result. Nothing but the run folder is written, and
no socket is opened.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from device_client.devices import dtype_name, dtype_named, resolve_device
from device_client.model.kept_states import KeptStates
from device_client.model.loader import load_model
from device_client.model.open import LoadModel, Machine, OpenedModel, fit_workload, open_model
from device_client.model.sparse_model import SparseModel
from device_client.model.tunable_model import TunableModel
from device_client.planning.memory_fit import side_by_side
from device_client.planning.methods import TunedPart, tuned_part
from device_client.planning.tuned_blocks import STATES_FILE_BYTES
from device_client.planning.workload import Workload
from device_client.tasks.checker import TIMEOUT_SECONDS, Checker, checker_command, checking
from device_client.tasks.scoring import Objective, check_metric, check_objective
from device_client.tasks.task_data import DataOptions, TaskData, load_task_data
from device_client.tuning.baselines import Room, baselines
from device_client.tuning.batches import BatchIndices
from device_client.tuning.curve import draw_curve
from device_client.tuning.engines import journal_header, make_engine
from device_client.tuning.evaluation import Evaluation
from device_client.tuning.journal import Journal, StepFlags, open_journal
from device_client.tuning.loop import Observer, Outcome, TuningLoop
from device_client.tuning.machine_record import MachineRecord, read_machine, write_machine
from device_client.tuning.make_goal import make_goal
from device_client.tuning.model_problem import ModelProblem
from device_client.tuning.run_directory import CONFIG, RunDirectory
from device_client.tuning.settings import ANSWER_TOKENS, Gradient, TuneSettings
from device_client.tuning.smaller_batches import with_smaller_batches
from device_client.tuning.tuned_values import check_room
from shared.bundle.digest import digest_of_bytes
from shared.bundle.read import Bundle
from shared.byte_sizes import format_bytes
from shared.errors import Conflict, InvalidRequest, ResourceError, UnsupportedModel
from shared.model.tokenizer import BundleTokenizer
from shared.tasks.examples import Example

RESULT, RESOURCES, CURVE = "result.json", "resources.json", "loss.svg"


@dataclass(frozen=True, slots=True)
class MachineSettings(Machine):
    """What the machine allows a run; nothing here is part of its identity.

    A run that continues takes device, format and micro-batch from its record; see ``machine_record``.

    Attributes:
        time_budget_seconds: Stop after so long; the same command continues.
        states_file_bytes: What hidden states below the tuned blocks may take of the disk while the run is tuned.
        checker_timeout_seconds: How long a checker may take for an answer.
        checker_may_connect: Whether a checker may use the network.
    """

    time_budget_seconds: float | None = None
    states_file_bytes: int = STATES_FILE_BYTES
    checker_timeout_seconds: float = TIMEOUT_SECONDS
    checker_may_connect: bool = False


@dataclass(frozen=True, slots=True)
class TuneReport:
    """What a run came to.

    Attributes:
        run: Its folder.
        result: result.json: a function of bundle, rows and settings.
        resources: resources.json: a function of the machine.
        was_finished: Whether the run had been finished before.
    """

    run: Path
    result: Mapping[str, Any]
    resources: Mapping[str, Any]
    was_finished: bool


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """A run whose rows are read and whose folder is known; no model is loaded yet."""

    bundle: Bundle
    settings: TuneSettings
    part: TunedPart
    data: TaskData
    objective: Objective | None
    config: dict[str, Any] = field(repr=False)
    directory: RunDirectory

    @property
    def settings_digest(self) -> str:
        """Digest of everything that decides the run."""
        return str(self.config["settings_digest"])


def plan_run(
    bundle: Bundle, settings: TuneSettings, options: DataOptions, *, runs: Path, output: Path | None = None
) -> PlannedRun:
    """Read the rows and decide what the run is and where it lies; nothing is written.

    Args:
        bundle: A validated bundle.
        settings: What decides the run.
        options: Which rows.
        runs: Folder of runs, where the run is named after bundle, rows and settings.
        output: Its folder, instead.

    Raises:
        DataError: A row is unusable.
        InvalidRequest: An option is wrong.
        UnsupportedModel: The bundle, or its blocks that are to be tuned, have no sensitive values.
    """
    part = tuned_part(bundle.config, settings.method, settings.blocks)
    if part.value_count == 0:
        raise UnsupportedModel(
            f"bundle {bundle.digest} of {bundle.config.source.id} has no sensitive values: there is nothing to tune",
            needed="a bundle with at least one sensitive value, or another method",
            next_step="prepare the model with a share of sensitive weights, such as --sparsity 0.001, and pull it, or "
            "tune with --method lora",
        )
    settings = replace(settings, blocks=part.blocks.name)
    model_type = str(bundle.config.architecture["model_type"])
    if settings.metric == "checker":
        options = replace(options, judged_tokens=settings.answer_tokens or ANSWER_TOKENS)
    data = load_task_data(options, BundleTokenizer.from_bundle(bundle), model_type)
    examples = [*data.training, *data.validation, *data.test]
    objective = settings.objective or default_objective(examples)
    check_objective(examples, objective)
    check_metric(examples, settings.metric)
    check_room(part, examples, bundle.config)
    identity = {
        "bundle_digest": bundle.digest,
        "settings": settings.identity(objective),
        "rows": dict(data.digests),
        **data.prompts.as_config(),
    }
    digest = digest_of_bytes(json.dumps(identity, sort_keys=True).encode())
    source = options.task or (options.data.stem if options.data else "rows")
    name = f"{bundle.config.source.id.rpartition('/')[2]}-{source}-{digest.removeprefix('sha256:')[:8]}"
    counts = {"training": len(data.training), "validation": len(data.validation), "test": len(data.test)}
    labels = {"method": part.method.name} | {key: str(number) for key, number in part.method.recorded.items()}
    config = identity | {"settings_digest": digest, "source_model": bundle.config.source.id, "row_counts": counts}
    return PlannedRun(bundle, settings, part, data, objective, config, RunDirectory(output or runs / name, labels))


def default_objective(examples: list[Example]) -> Objective | None:
    """Return ``candidates`` where every row offers a choice, else ``vocabulary``; None where one has no answer."""
    if not all(example.has_answer for example in examples):
        return None
    return "vocabulary" if any(example.is_free for example in examples) else "candidates"


def tune(
    planned: PlannedRun,
    machine: MachineSettings,
    observer: Observer,
    clock: Callable[[], float],
    *,
    load: LoadModel = load_model,
) -> TuneReport:
    """Make the run, or what is left of it, and return what it came to.

    What is refused before anything was measured leaves no run behind.

    Raises:
        Conflict: The folder holds another run or one begun on another machine, or another process is tuning it.
        Diverged: The loss left the region where it began; the best values are kept.
        DiskError: The disk is full or not writable; the run can go on.
        ResourceError: Memory does not suffice.
        InvalidRequest: ε is too small for the compute format.
    """
    if planned.directory.read_json(CONFIG) is None:
        # What does not fit is refused before a folder says that there is a run.
        fit_workload(planned.bundle.config, machine, _workload(planned, planned.settings.gradient))
    files_before = planned.directory.files()
    finished = begin(planned)
    if finished is not None:
        return finished
    header = journal_header(planned.settings, planned.part, planned.bundle.digest, planned.settings_digest)
    with open_journal(planned.directory.journal, header) as journal:
        begun_on = read_machine(planned.directory)
        if begun_on is not None:
            machine = _as_begun(planned, machine, begun_on)
        elif not journal.records:
            _say_where_first_order_fits(planned, machine, observer)
        try:
            result, resources = _tune(planned, machine, observer, clock, load, journal)
        except (InvalidRequest, ResourceError):
            if begun_on is None and not journal.records:  # there is nothing to go on with
                planned.directory.discard(except_for=files_before)
            raise
    return TuneReport(planned.directory.path, result, resources, was_finished=False)


def _say_where_first_order_fits(planned: PlannedRun, machine: MachineSettings, observer: Observer) -> None:
    budget = machine.memory_budget_bytes
    settings = planned.settings
    is_exact = settings.gradient == "first-order"
    if is_exact or settings.metric is not None or not planned.part.method.has_exact_gradient or budget is None:
        return
    try:
        fit = fit_workload(planned.bundle.config, machine, _workload(planned, "first-order"))
    except ResourceError:
        return
    observer.note(
        f"first order would fit, too ({format_bytes(fit.plan.total_bytes)} of {format_bytes(budget)} are planned) and "
        "learns more from each pass: --gradient first-order"
    )


def _tune(
    planned: PlannedRun,
    machine: MachineSettings,
    observer: Observer,
    clock: Callable[[], float],
    load: LoadModel,
    journal: Journal,
) -> tuple[dict[str, Any], dict[str, Any]]:
    opened = open_model(planned.bundle, machine, _workload(planned, planned.settings.gradient), load=load)
    states_file = planned.directory.path, machine.states_file_bytes
    with (
        KeptStates(opened.fit.kept_states_bytes, *states_file, observer.note) as kept,
        checking(
            checker_command(command) if (command := planned.settings.checker) else None,
            timeout_seconds=machine.checker_timeout_seconds,
            may_connect=machine.checker_may_connect,
        ) as checker,
    ):
        return _tune_model(planned, machine, observer, clock, journal, opened, kept, checker)


def _tune_model(
    planned: PlannedRun,
    machine: MachineSettings,
    observer: Observer,
    clock: Callable[[], float],
    journal: Journal,
    opened: OpenedModel,
    kept: KeptStates,
    checker: Checker | None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    model, fit = opened.model, opened.fit
    tuned = opened.tuned_part(planned.part, kept, seed=planned.settings.seed)
    settings, run = planned.settings, planned.directory
    problem = _problem(planned, tuned, model.tokenizer, checker, fit.micro_batch_rows, fit.points_at_once)
    theta = tuned.initial_theta()
    on_record = read_machine(run) or MachineRecord(
        model.device.type, dtype_name(model.compute_dtype), fit.micro_batch_rows, fit.micro_batch_rows, model.products
    )
    on_record.check_products(run, model.products)
    write_machine(run, on_record)

    def remember_rows() -> None:
        write_machine(run, replace(on_record, micro_batch_rows=problem.micro_batch_rows))

    ready = make_engine(
        settings, model, tuned, planned.part, problem, planned.objective, machine.backend, remember_rows
    )
    begun_at = clock()
    loop = TuningLoop(
        problem, ready.engine, theta, settings, journal, run, observer, clock, machine.time_budget_seconds,
        shrunk=remember_rows,
    )  # fmt: skip
    outcome = loop.run()
    seconds = clock() - begun_at
    account = ready.engine.account(outcome.records)
    result = account | with_smaller_batches(lambda: _result(planned, model, problem, theta, outcome, kept), problem)
    resources = {
        "device": str(model.device),
        "compute_dtype": dtype_name(model.compute_dtype),
        "backend": model.backend_name,
        "micro_batch_rows": problem.micro_batch_rows,
        "points_at_once": problem.points_at_once,
        "kept_states_bytes": kept.memory_bytes,
        "states_file_bytes": kept.file_bytes,
        "seconds": seconds,
        "seconds_per_step": seconds / outcome.steps_measured if outcome.steps_measured else None,
        "steps_in_this_process": outcome.steps_measured,
        "peak_memory_bytes": model.memory.peak_bytes,
        "planned_memory_bytes": fit.plan.total_bytes,
        "memory_budget_bytes": machine.memory_budget_bytes,
        **ready.findings,
    }
    finish(run, outcome, result, resources)
    return result, resources


def begin(planned: PlannedRun) -> TuneReport | None:
    """Make the run's folder, or return what it holds where the run is finished.

    Raises:
        Conflict: The folder holds another run.
        DiskError: The disk is full or not writable.
    """
    run = planned.directory
    found = run.read_json(CONFIG)
    if found is None:
        run.create()
        run.write_json(CONFIG, planned.config)
        return None
    if found.get("settings_digest") != planned.settings_digest:
        changed = sorted(key for key in planned.config if found.get(key) != planned.config[key])
        settings = found.get("settings", {}), planned.config["settings"]
        of_settings = sorted(key for key in settings[0] | settings[1] if settings[0].get(key) != settings[1].get(key))
        raise Conflict(
            f"{run.path} holds another run: {', '.join(changed)} differ"
            + (f" (of the settings: {', '.join(of_settings)})" if of_settings else ""),
            needed="the settings and rows that the run was begun with",
            next_step="choose another folder with --output",
        )
    result = run.read_json(RESULT)
    if result is None or result["stopped_by"] == "time budget":
        return None
    return TuneReport(run.path, result, run.read_json(RESOURCES) or {}, was_finished=True)


def finish(run: RunDirectory, outcome: Outcome, result: dict[str, Any], resources: dict[str, Any]) -> None:
    """Write what the run came to; result.json last, for it says that the run is finished."""
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


def _as_begun(planned: PlannedRun, machine: MachineSettings, begun_on: MachineRecord) -> MachineSettings:
    """Return the machine that a run goes on with.

    Raises:
        Conflict: Another device, format or micro-batch is asked for, or the device is not there any more.
        ResourceError: The micro-batch that the run has come to does not fit the budget.
    """
    # A CPU is always there; CUDA may have gone since.
    device = machine.device or ("cpu" if begun_on.device_type == "cpu" else None)
    begun_on.check(
        planned.directory,
        device_type=resolve_device(device).type,
        compute_dtype=dtype_name(machine.compute_dtype) if machine.compute_dtype else None,
        micro_batch_rows=machine.micro_batch_rows,
    )
    dtype = dtype_named(begun_on.compute_dtype)
    rows = begun_on.micro_batch_rows
    backend = replace(machine.backend, matrix_unit=begun_on.products == "matrix unit")
    as_begun = replace(machine, device=device, compute_dtype=dtype, micro_batch_rows=rows, backend=backend)
    try:
        fit_workload(planned.bundle.config, as_begun, _workload(planned, planned.settings.gradient))
    except ResourceError as error:
        raise ResourceError(
            f"{error.found}, but the run in {planned.directory.path} goes on with {rows} sequences side by side",
            needed=error.needed,
            next_step="raise --memory-budget, or begin another run with --output",
        ) from error
    return as_begun


def _workload(planned: PlannedRun, gradient: Gradient) -> Workload:
    data, settings = planned.data, planned.settings
    examples = [*data.training, *data.validation, *data.test]
    most = side_by_side(
        examples,
        settings.batch_size,
        queries=settings.queries,
        blocks=settings.blocks,
        method=settings.method,
        answer_tokens=settings.answer_tokens or 0,
    )
    return replace(most, queries=0, is_differentiated=True) if gradient == "first-order" else most


Stage = Literal["bundle", "start", "last", "best"]
"""``start`` is θ before any step, where that is not the bundle itself."""


def _result(
    planned: PlannedRun,
    model: SparseModel,
    problem: ModelProblem[Any],
    theta: Tensor,
    outcome: Outcome,
    kept: KeptStates,
) -> dict[str, Any]:
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
    if planned.data.test:
        values: dict[Stage, Tensor] = {first: theta, "last": outcome.last, "best": outcome.best.to(theta.device)}
        result["test"] = {
            stage: problem.evaluate(value, planned.data.test).as_json() for stage, value in values.items()
        }
    parts = {"validation": planned.data.validation, "test": planned.data.test}
    bundle, own = problem, theta
    with ExitStack() as stack:
        if not begins_as_bundle:
            stack.enter_context(model.as_published())
            bundle = _problem(planned, model, model.tokenizer, None, problem.micro_batch_rows)
            own = model.initial_theta()
            for part in (name for name, examples in parts.items() if examples):
                result[part]["bundle"] = bundle.evaluate(own, parts[part]).as_json()
        if planned.objective == "candidates" and outcome.stopped_by != "time budget":  # else it is not finished
            judged = "test" if planned.data.test else "validation"
            stack.enter_context(kept.closed())  # prompts with rows in front of them come once
            result[judged] |= _baselines(planned, bundle, own, parts[judged])
    return result


def _problem(
    planned: PlannedRun,
    model: TunableModel,
    tokenizer: BundleTokenizer,
    checker: Checker | None,
    rows: int,
    points_at_once: int = 1,
) -> ModelProblem[Any]:
    data, settings = planned.data, planned.settings
    indices = BatchIndices(len(data.training), settings.batch_size, settings.seed)
    goal = make_goal(model, tokenizer, planned.objective, settings.metric, settings.answer_tokens, checker)
    return ModelProblem(model, data.training, data.validation, goal, indices, rows, points_at_once)


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
