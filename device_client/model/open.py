"""The one way to a running model: bundle, machine and workload in; planned, refused or loaded; the backend chosen.

    plan     what of the workload the machine's budget lets run side by side                    planning.memory_fit
    load     tensor by tensor, the fastest backend that works                                   loader
    spare    what the plan leaves of the budget keeps decoded weights                           decoded_cache

Tuning and evaluation are refused before anything is loaded where they do not fit. A text is not: how long it gets is
known at its end only, so a context that would not fit as a whole just leaves nothing for decoded weights.
Costs the loading. Knows nothing about rows, runs or commands.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from device_client.devices import resolve_device
from device_client.model.backends.choose import REFERENCE, BackendOptions
from device_client.model.kept_states import KeptStates
from device_client.model.loader import load_model
from device_client.model.methods import tuned_by
from device_client.model.sparse_model import SparseModel
from device_client.model.text_network.network import network_for_text
from device_client.model.tunable_model import TunableModel
from device_client.model.upper_blocks import UpperBlocks
from device_client.planning.memory_fit import MemoryFit, fit_to_memory
from device_client.planning.memory_plan import plan_generation, spare_bytes, state_bytes
from device_client.planning.methods import MethodName, TunedPart
from device_client.planning.workload import Workload
from shared.bundle.config import BundleConfig
from shared.bundle.read import Bundle
from shared.model.network import network_without_weights
from shared.model.tokenizer import BundleTokenizer

LoadModel = Callable[..., SparseModel]
"""``loader.load_model``, or what stands for it."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What of the machine may be used, and how; nothing here changes what is computed but for the last bits.

    Attributes:
        device: ``cpu``, ``cuda``, or None for what there is.
        compute_dtype: None takes float16 on CUDA and float32 on a CPU.
        memory_budget_bytes: None has no limit.
        micro_batch_rows: Sequences side by side; None derives them from the budget.
        backend: What decodes and multiplies; in bfloat16 it may decide what makes products.
    """

    device: str | None = None
    compute_dtype: torch.dtype | None = None
    memory_budget_bytes: int | None = None
    micro_batch_rows: int | None = None
    backend: BackendOptions = REFERENCE


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """A model that is ready for a workload.

    Attributes:
        model: The loaded model.
        fit: What of the workload may run side by side.
    """

    model: SparseModel
    fit: MemoryFit

    def tuned_part(self, part: TunedPart, kept: KeptStates, *, seed: int = 0) -> TunableModel:
        """Return what is tuned: of the model, or of its upper blocks over the hidden states that enter them.

        Args:
            part: What of which blocks.
            kept: Keeps those states from step to step.
            seed: Of what θ begins with, where it is drawn.

        Raises:
            UnsupportedModel: The network does not keep its blocks in one list.
        """
        if part.blocks.first == 0:
            return tuned_by(part, self.model, self.model, seed=seed)
        held_tokens = self.fit.plan.workload.entering_tokens
        held_bytes = held_tokens * state_bytes(self.model.config, self.model.compute_dtype.itemsize)
        upper = UpperBlocks(self.model, part.blocks, kept, held_bytes=held_bytes)
        return tuned_by(part, self.model, upper, seed=seed)


def fit_workload(config: BundleConfig, machine: Machine, most: Workload) -> MemoryFit:
    """Return what of a workload the machine's budget lets run side by side; nothing is loaded.

    Args:
        config: The bundle's configuration.
        machine: What may be used.
        most: All sequences side by side, and the queries of a step.

    Raises:
        ResourceError: It does not fit the budget, or there is no such device or backend.
    """
    return fit_to_memory(
        config,
        most,
        budget_bytes=machine.memory_budget_bytes,
        device_type=resolve_device(machine.device).type,
        value_bytes=machine.compute_dtype.itemsize if machine.compute_dtype else None,
        micro_batch_rows=machine.micro_batch_rows,
        backend=machine.backend.name,
    )


def open_model(bundle: Bundle, machine: Machine, most: Workload, *, load: LoadModel = load_model) -> OpenedModel:
    """Return the bundle's model, ready to tune or to evaluate a workload.

    Args:
        bundle: A validated bundle.
        machine: What may be used.
        most: All sequences side by side, and the queries of a step.
        load: Loads.

    Raises:
        ResourceError: It does not fit the budget, or there is no such device or backend.
        UnsupportedModel: The architecture is not served.
        TensorMismatch: The bundle's tensors are not those of the architecture.
    """
    fit = fit_workload(bundle.config, machine, most)
    model = _loaded(bundle, machine, load)
    model.keep_decoded(fit.decoded_cache_bytes)
    return OpenedModel(model, fit)


def open_for_text(
    bundle: Bundle, machine: Machine, method: MethodName = "sparse", *, tokenizer: BundleTokenizer | None = None
) -> SparseModel:
    """Return the bundle's model, ready to continue texts up to its context length.

    Args:
        bundle: A validated bundle.
        machine: What may be used.
        method: Of the run whose values it will have.
        tokenizer: The bundle's, where the caller has read it already.

    Raises:
        ResourceError: The weights do not fit the budget, or there is no such device or backend.
        UnsupportedModel: The architecture is not served.
        TensorMismatch: The bundle's tensors are not those of the architecture.
    """
    # A prefix, and what CUDA captures in a graph, are made of transformers' keys and values.
    is_plain = method != "prefix" and resolve_device(machine.device).type == "cpu"
    make_network = network_for_text if is_plain else network_without_weights
    model = _loaded(bundle, machine, partial(load_model, make_network=make_network, tokenizer=tokenizer))
    budget = machine.memory_budget_bytes
    if model.fused_up_to_tokens == 0 and budget is not None:  # each token would decode every weight again
        plan = plan_generation(
            bundle.config, model.device.type, model.compute_dtype.itemsize, model.backend_name, method
        )
        model.keep_decoded(spare_bytes(plan, budget))
    return model


def _loaded(bundle: Bundle, machine: Machine, load: LoadModel) -> SparseModel:
    return load(
        bundle,
        device=machine.device,
        compute_dtype=machine.compute_dtype,
        memory_budget_bytes=machine.memory_budget_bytes,
        backend=machine.backend,
    )
