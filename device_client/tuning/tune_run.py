"""One fine-tune from a bundle and rows to a finished run folder.

Order: rows · settings and their digest · run folder · model · fidelity of the perturbation · the loop · evaluation of
the bundle's own, the last and the best values on the same rows · result. Nothing but the run folder is written, and
no socket is opened.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from device_client.model.backends.choose import REFERENCE, BackendOptions
from device_client.model.linear import dtype_name
from device_client.model.loader import load_model, resolve_device
from device_client.model.sparse_model import SparseModel
from device_client.tasks.scoring import Objective, check_objective
from device_client.tasks.task_data import DataOptions, TaskData, load_task_data
from device_client.tuning.batches import BatchIndices
from device_client.tuning.curve import draw_curve
from device_client.tuning.evaluation import Evaluation
from device_client.tuning.fidelity import check_fidelity, noise_floor
from device_client.tuning.journal import Journal, JournalHeader, StepFlags, open_journal
from device_client.tuning.loop import Observer, Outcome, TuningLoop
from device_client.tuning.machine_record import MachineRecord, read_machine, write_machine
from device_client.tuning.measured_step import RESOLVED, MeasuredStep
from device_client.tuning.memory_fit import MemoryFit, fit_to_memory, side_by_side
from device_client.tuning.model_problem import ModelProblem
from device_client.tuning.perturbations import PerturbationStream, drawing_of
from device_client.tuning.run_directory import CONFIG, RunDirectory
from device_client.tuning.run_findings import forward_passes, measured
from device_client.tuning.schedules import ChosenScale, StepSizeSchedule
from device_client.tuning.settings import TuneSettings
from device_client.tuning.smaller_batches import with_smaller_batches
from shared.bundle.digest import digest_of_bytes
from shared.bundle.read import Bundle
from shared.errors import Conflict, InvalidRequest, ResourceError, UnsupportedModel
from shared.model.tokenizer import BundleTokenizer
from shared.perturbation import STREAM_NAMES
from shared.tasks.examples import Example

RESULT, RESOURCES, CURVE = "result.json", "resources.json", "loss.svg"
_NOISE_DIRECTIONS = 2
_SPACINGS_TO_RESOLVE = 10
"""Of a 16-bit format's relative spacings, as a share of the loss, that a second difference should be clear of."""


@dataclass(frozen=True, slots=True)
class MachineSettings:
    """What the machine allows; nothing here is part of a run's identity.

    A run that goes on takes device, format and micro-batch from its record; see ``machine_record``.

    Attributes:
        device: ``cpu``, ``cuda``, or None for what there is.
        compute_dtype: None takes float16 on CUDA and float32 on a CPU.
        memory_budget_bytes: None has no limit.
        micro_batch_rows: Sequences side by side; None derives them from the budget.
        time_budget_seconds: Stop after so long; the same command goes on.
        backend: What decodes and multiplies; in bfloat16 it may decide what makes products, see ``machine_record``.
    """

    device: str | None = None
    compute_dtype: torch.dtype | None = None
    memory_budget_bytes: int | None = None
    micro_batch_rows: int | None = None
    time_budget_seconds: float | None = None
    backend: BackendOptions = REFERENCE


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
    data: TaskData
    objective: Objective
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
        UnsupportedModel: The bundle has no sensitive values.
    """
    if bundle.config.sensitive_count == 0:
        raise UnsupportedModel(
            f"bundle {bundle.digest} of {bundle.config.source.id} has no sensitive values: there is nothing to tune",
            needed="a bundle with at least one sensitive value",
            next_step="prepare the model with a share of sensitive weights, such as --sparsity 0.001, and pull it",
        )
    model_type = str(bundle.config.architecture["model_type"])
    data = load_task_data(options, BundleTokenizer.from_bundle(bundle), model_type)
    examples = [*data.training, *data.validation, *data.test]
    objective = settings.objective or default_objective(examples)
    check_objective(examples, objective)
    identity = {
        "bundle_digest": bundle.digest,
        "settings": settings.identity(objective),
        "rows": dict(data.digests),
        "rendering": data.renderer.as_json(),
        "max_tokens": options.max_tokens,
    }
    digest = digest_of_bytes(json.dumps(identity, sort_keys=True).encode())
    source = options.task or (options.data.stem if options.data else "rows")
    name = f"{bundle.config.source.id.rpartition('/')[2]}-{source}-{digest.removeprefix('sha256:')[:8]}"
    counts = {"training": len(data.training), "validation": len(data.validation), "test": len(data.test)}
    config = identity | {"settings_digest": digest, "source_model": bundle.config.source.id, "row_counts": counts}
    return PlannedRun(bundle, settings, data, objective, config, RunDirectory(output or runs / name))


def default_objective(examples: list[Example]) -> Objective:
    """Return ``candidates`` where every row offers a choice, else ``vocabulary``."""
    return "vocabulary" if any(example.is_free for example in examples) else "candidates"


def tune(
    planned: PlannedRun,
    machine: MachineSettings,
    observer: Observer,
    clock: Callable[[], float],
    *,
    load: Callable[..., SparseModel] = load_model,
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
        _memory_fit(planned, machine)  # what does not fit is refused before a folder says that there is a run
    files_before = planned.directory.files()
    finished = begin(planned)
    if finished is not None:
        return finished
    with open_journal(planned.directory.journal, _header(planned)) as journal:
        begun_on = read_machine(planned.directory)
        if begun_on is not None:
            machine = _as_begun(planned, machine, begun_on)
        try:
            result, resources = _tune(planned, machine, observer, clock, load, journal)
        except (InvalidRequest, ResourceError):
            if begun_on is None and not journal.records:  # there is nothing to go on with
                planned.directory.discard(except_for=files_before)
            raise
    return TuneReport(planned.directory.path, result, resources, was_finished=False)


def _tune(
    planned: PlannedRun,
    machine: MachineSettings,
    observer: Observer,
    clock: Callable[[], float],
    load: Callable[..., SparseModel],
    journal: Journal,
) -> tuple[dict[str, Any], dict[str, Any]]:
    fit = _memory_fit(planned, machine)
    model = load(
        planned.bundle,
        device=machine.device,
        compute_dtype=machine.compute_dtype,
        memory_budget_bytes=machine.memory_budget_bytes,
        backend=machine.backend,
    )
    model.keep_decoded(fit.decoded_cache_bytes)
    settings, data, run = planned.settings, planned.data, planned.directory
    indices = BatchIndices(len(data.training), settings.batch_size, settings.seed)
    problem = ModelProblem(
        model, data.training, data.validation, planned.objective, indices, fit.micro_batch_rows, fit.points_at_once
    )
    theta = model.initial_theta()
    drawing = drawing_of(settings.distribution, machine.backend)
    draw = PerturbationStream(settings.seed, model.sensitive_count, drawing, model.device)
    lost_share = check_fidelity(theta, draw(0, 0), settings.epsilon, model.compute_dtype)
    on_record = read_machine(run) or MachineRecord(
        model.device.type, dtype_name(model.compute_dtype), fit.micro_batch_rows, fit.micro_batch_rows, model.products
    )
    on_record.check_products(run, model.products)
    write_machine(run, on_record)

    def remember_rows() -> None:
        write_machine(run, replace(on_record, micro_batch_rows=problem.micro_batch_rows))

    noise = with_smaller_batches(
        lambda: _noise_floor(problem, theta, draw, settings.epsilon), problem, remember_rows
    )  # fmt: skip
    begun_at, recorded = clock(), len(journal.records)
    loop = TuningLoop(
        problem, theta, draw, _schedule(settings, theta, model.compute_dtype), settings, journal, run, observer, clock,
        machine.time_budget_seconds, shrunk=remember_rows,
    )  # fmt: skip
    outcome = loop.run()
    seconds = clock() - begun_at
    result = with_smaller_batches(lambda: _result(planned, problem, theta, outcome), problem)
    live_steps = outcome.steps_done - recorded
    resources = {
        "device": str(model.device),
        "compute_dtype": dtype_name(model.compute_dtype),
        "backend": model.backend_name,
        "micro_batch_rows": problem.micro_batch_rows,
        "points_at_once": problem.points_at_once,
        "seconds": seconds,
        "seconds_per_step": seconds / live_steps if live_steps else None,
        "steps_in_this_process": live_steps,
        "peak_memory_bytes": model.memory.peak_bytes,
        "planned_memory_bytes": fit.plan.total_bytes,
        "memory_budget_bytes": machine.memory_budget_bytes,
        "perturbation_lost_share": lost_share,
        "noise_floor": noise if math.isfinite(noise) else None,
    }
    finish(run, outcome, result, resources)
    return result, resources


def _noise_floor(problem: ModelProblem, theta: Tensor, draw: PerturbationStream, epsilon: float) -> float:
    """Measure it with the first batch, along the first steps' directions."""
    directions = [draw(step, 0) for step in range(_NOISE_DIRECTIONS)]
    return noise_floor(problem.losses, theta, directions, epsilon, problem.batch(0))


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
        raise Conflict(
            f"{run.path} holds another run: {', '.join(changed)} differ",
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
    validation = [(step, found.loss) for step, found in outcome.validations.items() if math.isfinite(found.loss)]
    run.write_bytes(CURVE, draw_curve(training, validation))
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
    dtype: torch.dtype = getattr(torch, begun_on.compute_dtype)
    rows = begun_on.micro_batch_rows
    backend = replace(machine.backend, matrix_unit=begun_on.products == "matrix unit")
    as_begun = replace(machine, device=device, compute_dtype=dtype, micro_batch_rows=rows, backend=backend)
    try:
        _memory_fit(planned, as_begun)
    except ResourceError as error:
        raise ResourceError(
            f"{error.found}, but the run in {planned.directory.path} goes on with {rows} sequences side by side",
            needed=error.needed,
            next_step="raise --memory-budget, or begin another run with --output",
        ) from error
    return as_begun


def _memory_fit(planned: PlannedRun, machine: MachineSettings) -> MemoryFit:
    data = planned.data
    return fit_to_memory(
        planned.bundle.config,
        side_by_side(
            [*data.training, *data.validation, *data.test],
            planned.settings.batch_size,
            queries=planned.settings.queries,
        ),
        budget_bytes=machine.memory_budget_bytes,
        device=machine.device,
        compute_dtype=machine.compute_dtype,
        micro_batch_rows=machine.micro_batch_rows,
        backend=machine.backend.name,
    )


def _header(planned: PlannedRun) -> JournalHeader:
    settings = planned.settings
    return JournalHeader(
        seed=settings.seed,
        stream=STREAM_NAMES[settings.distribution],
        distribution=settings.distribution,
        sensitive_count=planned.bundle.config.sensitive_count,
        queries=settings.queries,
        epsilon=settings.epsilon,
        bundle_digest=planned.bundle.digest,
        settings_digest=planned.settings_digest,
        is_measured=settings.is_step_measured,
    )


def _schedule(settings: TuneSettings, theta: Tensor, compute_dtype: torch.dtype) -> StepSizeSchedule:
    if not settings.is_step_measured:
        return StepSizeSchedule(settings, ChosenScale(settings, theta.numel()))
    value_rms = float(theta.double().square().mean().sqrt())
    resolved = max(RESOLVED, _SPACINGS_TO_RESOLVE * torch.finfo(compute_dtype).eps)
    return StepSizeSchedule(settings, MeasuredStep(settings, value_rms, resolved))


Stage = Literal["bundle", "last", "best"]


def _result(planned: PlannedRun, problem: ModelProblem, theta: Tensor, outcome: Outcome) -> dict[str, Any]:
    validations = outcome.validations
    on_validation: dict[Stage, Evaluation] = {
        "bundle": validations[0],
        # A run that its time budget stopped is evaluated for the report alone.
        "last": validations.get(outcome.steps_done) or problem.validate(outcome.last),
        "best": validations[outcome.best_step],
    }
    result: dict[str, Any] = {
        "steps_done": outcome.steps_done,
        "best_step": outcome.best_step,
        "stopped_by": outcome.stopped_by,
        "objective": planned.objective,
        "forward_passes": forward_passes(outcome.records, planned.settings),
        "median_loss_difference": outcome.median_loss_difference,
        "clipped_steps": sum(StepFlags.CLIPPED in record.flags for record in outcome.records),
        "skipped_steps": sum(StepFlags.SKIPPED in record.flags for record in outcome.records),
        "truncated_rows": sum(example.truncated_tokens > 0 for example in planned.data.training),
        "validation": {stage: found.as_json() for stage, found in on_validation.items()},
    }
    if planned.settings.is_step_measured:
        result["measured"] = measured(outcome.records, planned.settings)
    if planned.data.test:
        values: dict[Stage, Tensor] = {"bundle": theta, "last": outcome.last, "best": outcome.best.to(theta.device)}
        result["test"] = {
            stage: problem.evaluate(value, planned.data.test).as_json() for stage, value in values.items()
        }
    return result
