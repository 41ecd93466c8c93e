"""``zo-cloud plan MODEL``: how ``prepare`` with the same options would use memory and time, before anything is loaded.

Of a model on the hub only config.json is fetched. With ``--accelerators N`` the plan is for N accelerators of
``--max-accelerator-bytes`` each, whatever this machine has; its times are then those of a usual accelerator.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from cloud_service.commands.device_option import add_device_option
from cloud_service.commands.local_sources import add_source_options, local_sources
from cloud_service.commands.memory_options import add_memory_options, memory_budget
from cloud_service.commands.prepare import add_request_options, request_of

if TYPE_CHECKING:
    from cloud_service.pipeline.planning.model_shape import ModelShape
    from cloud_service.pipeline.planning.workload import Machine
    from cloud_service.sources import SourcePolicy
    from shared.api import PrepareRequest


def add_plan_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("plan", help="predict a preparation's memory and time", description=__doc__,
                                 formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("model", help="hub id, or a Hugging Face folder")
    add_request_options(parser)
    add_memory_options(parser)
    parser.add_argument(
        "--accelerators",
        type=int,
        metavar="N",
        help="plan for N accelerators that need not be here; without --max-host-bytes, for the main memory that is",
    )
    add_device_option(parser)
    add_source_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from cloud_service.pipeline.named_input import NamedInput
    from cloud_service.pipeline.planning.input_plan import workload_of
    from cloud_service.pipeline.planning.plan_table import plan_table
    from cloud_service.pipeline.planning.preparation_plan import plan_preparation

    request = request_of(arguments)
    shape = _shape(request, local_sources(arguments))
    plan = plan_preparation(shape, workload_of(NamedInput.of_preparation(request), shape), _machine(arguments, request))
    text = json.dumps(plan.to_json()) if arguments.json else f"{_headline(request, shape)}\n{plan_table(plan)}"
    print(text)  # noqa: T201


def _headline(request: PrepareRequest, shape: ModelShape) -> str:
    spec = request.calibration
    size = f"{shape.elements / 1e9:.2f} billion" if shape.elements >= 1e9 else f"{shape.elements / 1e6:.1f} million"
    tokens = min(spec.tokens_per_sequence, shape.context)
    return f"{request.model}: {size} parameters, {spec.sequences} sequences of {tokens} tokens"


def _shape(request: PrepareRequest, sources: SourcePolicy) -> ModelShape:
    from cloud_service.pipeline.model.hub import Snapshot, fetch, find_snapshot
    from cloud_service.pipeline.planning.model_shape import read_config_shape, read_model_shape
    from cloud_service.sources import LocalModel, locate_model
    from shared.errors import UnsupportedModel

    model = locate_model(request.model, request.revision, sources)
    if isinstance(model, LocalModel):
        return read_model_shape(model.folder, allow_untested=request.allow_untested)
    snapshot = find_snapshot(model, sources)
    if "config.json" not in snapshot.sizes:
        raise UnsupportedModel(f"{model.id} has no config.json", needed="a Hugging Face model", param="model")
    only_config = Snapshot(snapshot.commit, {"config.json": snapshot.sizes["config.json"]})
    folder = fetch(model, only_config, sources, _Silence())
    return read_config_shape(folder, allow_untested=request.allow_untested)


def _machine(arguments: argparse.Namespace, request: PrepareRequest) -> Machine:
    from cloud_service.pipeline.planning.input_plan import imagined_machine
    from cloud_service.pipeline.planning.machine_probe import LIBRARIES_BYTES, available_host_bytes, probe_machine
    from shared.errors import InvalidRequest

    budget = memory_budget(arguments)
    if arguments.accelerators is None:
        with tempfile.TemporaryDirectory() as folder:
            return probe_machine(
                device=arguments.device, budget=budget, folder=Path(folder), quantizer=request.quantizer
            )
    if arguments.accelerators < 1:
        raise InvalidRequest(
            f"--accelerators {arguments.accelerators}",
            needed="at least 1",
            next_step="leave --accelerators out for what this machine has",
            param="accelerators",
        )
    return imagined_machine(
        arguments.accelerators, budget, host_bytes=available_host_bytes(), host_baseline=LIBRARIES_BYTES
    )


class _Silence:
    """Progress that nobody is shown: what is fetched is a few kilobytes."""

    def stage(self, stage: object, *, total: int = 0, unit: str = "") -> None:
        """Say nothing."""

    def advance(self, done: int) -> None:
        """Say nothing."""

    def note(self, message: str) -> None:
        """Say nothing."""
