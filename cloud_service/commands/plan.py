"""``zo-cloud plan MODEL``: how ``prepare`` with the same options would use memory and time, before anything is loaded.

Of a model on the hub only config.json is fetched, or the GGUF file that is named. With ``--accelerators N`` the plan is
for N accelerators of ``--max-accelerator-bytes`` each, whatever this machine has; its times are then those of a usual
accelerator.
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
    parser.add_argument("model", help="hub id, a Hugging Face folder, or a .gguf file")
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
    shape, copied_bytes = _shape(request, local_sources(arguments))
    workload = workload_of(NamedInput.of_preparation(request), shape, copied_bytes)
    plan = plan_preparation(shape, workload, _machine(arguments, request))
    text = json.dumps(plan.to_json()) if arguments.json else f"{_headline(request, shape)}\n{plan_table(plan)}"
    print(text)  # noqa: T201


def _headline(request: PrepareRequest, shape: ModelShape) -> str:
    spec = request.calibration
    size = f"{shape.elements / 1e9:.2f} billion" if shape.elements >= 1e9 else f"{shape.elements / 1e6:.1f} million"
    tokens = min(spec.tokens_per_sequence, shape.context)
    return f"{request.model}: {size} parameters, {spec.sequences} sequences of {tokens} tokens"


def _shape(request: PrepareRequest, sources: SourcePolicy) -> tuple[ModelShape, int]:
    """Return the model's shape, and the bytes of the 16-bit copy that is made of a GGUF file."""
    from cloud_service.contained_folder import ContainedFolder
    from cloud_service.pipeline.model.folder_kinds import refuse_other_kinds
    from cloud_service.pipeline.model.hub import Snapshot, fetch, find_snapshot
    from cloud_service.pipeline.opening.identity import with_only_gguf
    from cloud_service.pipeline.planning.model_shape import read_config_shape, read_model_shape
    from cloud_service.sources import LocalModel, locate_model
    from shared.errors import UnsupportedModel

    model = locate_model(request.model, request.revision, sources, gguf_file=request.gguf_file)
    if isinstance(model, LocalModel):
        model = with_only_gguf(model)
        if model.gguf_file is not None:
            return _gguf_shape(model.folder, model.gguf_file)
        refuse_other_kinds(ContainedFolder(model.folder))
        return read_model_shape(model.folder, allow_untested=request.allow_untested), 0
    snapshot = find_snapshot(model, sources)
    if model.gguf_file is not None:  # its header alone cannot be fetched; what is fetched serves the preparation too
        return _gguf_shape(fetch(model, snapshot, sources, _Silence()), model.gguf_file)
    if "config.json" not in snapshot.sizes:
        raise UnsupportedModel(f"{model.id} has no config.json", needed="a Hugging Face model", param="model")
    only_config = Snapshot(snapshot.commit, {"config.json": snapshot.sizes["config.json"]})
    folder = fetch(model, only_config, sources, _Silence())
    return read_config_shape(folder, allow_untested=request.allow_untested), 0


def _gguf_shape(folder: Path, name: str) -> tuple[ModelShape, int]:
    from cloud_service.pipeline.model.gguf.checkpoint import read_gguf
    from cloud_service.pipeline.planning.model_shape import shape_of_tensors

    file = read_gguf(folder, name)
    return shape_of_tensors(file.architecture, file.shapes), file.copied_bytes


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
