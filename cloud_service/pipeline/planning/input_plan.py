"""The plan of an input: its model's shape, its workload, and a machine, measured or imagined.

Knows nothing about how a plan is chosen.
"""

from __future__ import annotations

from pathlib import Path

from cloud_service.memory_budget import MemoryBudget
from cloud_service.pipeline.fisher.shards import shard_count
from cloud_service.pipeline.named_input import NamedInput
from cloud_service.pipeline.planning.machine_probe import probe_machine
from cloud_service.pipeline.planning.model_shape import ModelShape
from cloud_service.pipeline.planning.preparation_plan import PreparationPlan, plan_preparation
from cloud_service.pipeline.planning.workload import Machine, Rates, Workload
from cloud_service.sources import SELF
from shared.errors import InvalidRequest

_TOKENS_PER_DOCUMENT = 512

NOMINAL_RATES = Rates(
    flops_per_second=1.5e14,
    device_bytes_per_second=1e12,
    host_bytes_per_second=4e10,
    link_bytes_per_second=1.2e10,
    disk_bytes_per_second=1e9,
    quantized_weights_per_second=5e7,
)
"""A usual accelerator of a data centre, half of what its makers say it does at most: for machines that are not here."""


def plan_input(
    named: NamedInput,
    shape: ModelShape,
    budget: MemoryBudget,
    *,
    device: str | None,
    workspace: Path,
    copied_bytes: int = 0,
) -> PreparationPlan:
    """Return the plan of an input on this machine.

    Args:
        named: What to work on.
        shape: The model's shape.
        budget: Memory that may be used.
        device: Torch device; None means all CUDA devices where there are any, else the CPU.
        workspace: An existing folder on the workspace's disk.
        copied_bytes: Length of the 16-bit copy that is made of a quantised file.

    Raises:
        ResourceError: No way to do the work fits; the message names the smallest budgets that would do.
    """
    machine = probe_machine(device=device, budget=budget, folder=workspace, quantizer=named.quantizer)
    return plan_preparation(shape, workload_of(named, shape, copied_bytes), machine)


def workload_of(named: NamedInput, shape: ModelShape, copied_bytes: int = 0) -> Workload:
    """Return how much there is to do."""
    spec = named.calibration
    return Workload(
        sequences=spec.sequences,
        tokens=min(spec.tokens_per_sequence, shape.context),
        shards=shard_count(spec.sequences),
        sensitive_share=named.sparsity,
        evaluation_tokens=named.evaluation.documents * min(_TOKENS_PER_DOCUMENT, shape.context),
        compensates=named.quantizer is not None and named.quantizer.compensation != "none",
        copied_bytes=copied_bytes,
        needs_whole_network=named.needs_whole_network or SELF in (spec.text, named.evaluation.text),
        refits=named.quantizer is not None and named.quantizer.compensation == "refit",
    )


def imagined_machine(accelerators: int, budget: MemoryBudget, *, host_bytes: int, host_baseline: int) -> Machine:
    """Return a machine with so many accelerators, whatever this one has.

    Args:
        accelerators: How many.
        budget: What may be used; the accelerators' must be given.
        host_bytes: Main memory where the budget leaves it open.
        host_baseline: What a process uses before anything is loaded.

    Raises:
        InvalidRequest: The accelerators' memory is not given.
    """
    if budget.max_accelerator_bytes is None:
        raise InvalidRequest(
            f"--accelerators {accelerators} without their memory",
            needed="--max-accelerator-bytes, such as 24GiB",
            param="max_accelerator_bytes",
        )
    return Machine(
        accelerator_budgets=(budget.max_accelerator_bytes,) * accelerators,
        host_budget=budget.max_host_bytes or host_bytes,
        host_baseline=host_baseline,
        rates=NOMINAL_RATES,
    )
