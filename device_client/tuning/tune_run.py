"""One fine-tune, from what was planned to a finished run folder.

Order: run folder · model · fidelity of the perturbation · the loop · evaluation · result. Nothing but the run folder is
written, and no socket is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from device_client.devices import dtype_name, dtype_named, resolve_device
from device_client.machine_strain import MachineStrain, StrainKind
from device_client.model.kept_states import KeptStates
from device_client.model.loader import load_model
from device_client.model.open import LoadModel, Machine, OpenedModel, fit_workload, open_model
from device_client.planning.tuned_blocks import STATES_FILE_BYTES
from device_client.run_pages.report_page import write_report
from device_client.tasks.checker import TIMEOUT_SECONDS, Checker, checker_command, checking
from device_client.tuning.answers import ANSWERS
from device_client.tuning.engines import journal_header, make_engine
from device_client.tuning.figures import SHOWN_ROWS
from device_client.tuning.journal import Journal, open_journal, read_journal
from device_client.tuning.loop import BEST, TuningLoop
from device_client.tuning.loop_interface import Observer
from device_client.tuning.machine_record import MachineRecord, read_machine, write_machine
from device_client.tuning.planned_run import PlannedRun
from device_client.tuning.resting import MachineRest
from device_client.tuning.run_answers import run_answers
from device_client.tuning.run_directory import CONFIG, RunDirectory
from device_client.tuning.run_result import RESOURCES, run_result, write_outcome
from device_client.tuning.smaller_batches import with_smaller_batches
from shared.byte_sizes import format_bytes
from shared.errors import Conflict, IntegrityError, InvalidRequest, ResourceError


@dataclass(frozen=True, slots=True)
class MachineSettings(Machine):
    """What the machine allows a run; nothing here is part of its identity.

    A run that continues takes device, format and micro-batch from its record; see ``machine_record``.

    Attributes:
        time_budget_seconds: Stop after so long; the same command continues.
        states_file_bytes: What hidden states below the tuned blocks may take of the disk while the run is tuned.
        checker_timeout_seconds: How long a checker may take for an answer.
        checker_may_connect: Whether a checker may use the network.
        pause_limits: When to wait before a step; see ``machine_strain``.
        kept_rows: How many judged rows answers.json keeps.
    """

    time_budget_seconds: float | None = None
    states_file_bytes: int = STATES_FILE_BYTES
    checker_timeout_seconds: float = TIMEOUT_SECONDS
    checker_may_connect: bool = False
    pause_limits: Mapping[StrainKind, float] = field(default_factory=dict)
    kept_rows: int = SHOWN_ROWS


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
        fit_workload(planned.bundle.config, machine, planned.workload(planned.settings.gradient))
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
        fit = fit_workload(planned.bundle.config, machine, planned.workload("first-order"))
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
    opened = open_model(planned.bundle, machine, planned.workload(planned.settings.gradient), load=load)
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
    problem = planned.problem(tuned, model.tokenizer, checker, fit.micro_batch_rows, fit.points_at_once)
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
        shrunk=remember_rows, rest=MachineRest(MachineStrain(machine.pause_limits).reason, observer.note),
    )  # fmt: skip
    outcome = loop.run()
    seconds = clock() - begun_at - outcome.paused_seconds
    account = ready.engine.account(outcome.records)
    judged_result, judged = with_smaller_batches(
        lambda: run_result(planned, model, problem, theta, outcome, kept), problem
    )
    result = account | judged_result
    if outcome.stopped_by != "time budget":  # else the run is not finished
        best = outcome.best.to(model.device)
        try:
            answers = with_smaller_batches(
                lambda: run_answers(planned, model, tuned, problem, judged, best, kept_rows=machine.kept_rows), problem
            )
        except ResourceError as error:  # the run itself is done
            observer.note(f"no answers are kept for the report: {error.found}")
        else:
            run.write_json(ANSWERS, answers)
    resources = {
        "device": str(model.device),
        "compute_dtype": dtype_name(model.compute_dtype),
        "backend": model.backend_name,
        "products": model.products,
        "micro_batch_rows": problem.micro_batch_rows,
        "points_at_once": problem.points_at_once,
        "kept_states_bytes": kept.memory_bytes,
        "states_file_bytes": kept.file_bytes,
        "seconds": seconds,
        "paused_seconds": outcome.paused_seconds,
        "seconds_per_step": seconds / outcome.steps_measured if outcome.steps_measured else None,
        "steps_in_this_process": outcome.steps_measured,
        "peak_memory_bytes": model.memory.peak_bytes,
        "planned_memory_bytes": fit.plan.total_bytes,
        "memory_budget_bytes": machine.memory_budget_bytes,
        **ready.findings,
    }
    write_outcome(run, outcome, result, resources)
    write_report(run.path)
    return result, resources


def begin(planned: PlannedRun) -> TuneReport | None:
    """Make the run's folder, or return what it holds where the run is finished and what it came to is whole.

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
    result = run.read_result()
    if result is None or result["stopped_by"] == "time budget" or not _is_whole(run, result):
        return None
    return TuneReport(run.path, result, run.read_json(RESOURCES) or {}, was_finished=True)


def _is_whole(run: RunDirectory, result: Mapping[str, Any]) -> bool:
    """Return whether journal and best values of a finished run are there undamaged; else they are made again."""
    try:
        best = run.read_theta(BEST)
        steps = len(read_journal(run.journal)[1])
    except (IntegrityError, FileNotFoundError):
        return False
    return best is not None and (best.steps_done, steps) == (result["best_step"], result["steps_done"])


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
        products=machine.backend.products,
    )
    dtype = dtype_named(begun_on.compute_dtype)
    rows = begun_on.micro_batch_rows
    backend = replace(machine.backend, products=begun_on.products)
    as_begun = replace(machine, device=device, compute_dtype=dtype, micro_batch_rows=rows, backend=backend)
    try:
        fit_workload(planned.bundle.config, as_begun, planned.workload(planned.settings.gradient))
    except ResourceError as error:
        raise ResourceError(
            f"{error.found}, but the run in {planned.directory.path} goes on with {rows} sequences side by side",
            needed=error.needed,
            next_step="raise --memory-budget, or begin another run with --output",
        ) from error
    return as_begun
