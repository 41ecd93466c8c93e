"""What a preparation has to do, and on what: the two inputs of a plan beside the model's shape.

Plain values; nothing is measured here (see ``machine_probe``). Knows nothing about models.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Workload:
    """How much there is to do.

    Attributes:
        sequences: Calibration sequences N.
        tokens: Tokens T of each; the longest where they differ.
        shards: Shards that the sequences are cut into.
        sensitive_share: Share of the linear weights that is sensitive.
        evaluation_tokens: Tokens that the perplexity is measured on, per variant; 0 evaluates nothing.
        compensates: Whether the quantiser keeps second moments of its inputs (GPTQ).
        copied_bytes: Length of the 16-bit copy that is written of a quantised file first; 0 where none is.
        needs_whole_network: Whether something else is done with the network that cannot be done block by block.
        refits: Whether it then fits grids and codes to each other again.
    """

    sequences: int
    tokens: int
    shards: int
    sensitive_share: float = 0.001
    evaluation_tokens: int = 0
    compensates: bool = False
    copied_bytes: int = 0
    needs_whole_network: bool = False
    refits: bool = False


@dataclass(frozen=True, slots=True)
class Rates:
    """How fast a machine is.

    Attributes:
        flops_per_second: Matrix products in the compute dtype, on the compute device.
        device_bytes_per_second: Reads and writes of the compute device's memory.
        host_bytes_per_second: Reads and writes of host memory.
        link_bytes_per_second: Copies between accelerator and host.
        disk_bytes_per_second: Writes of the workspace's disk, flushed.
        quantized_weights_per_second: Weights that the chosen quantiser does; infinite where none is chosen.
    """

    flops_per_second: float
    device_bytes_per_second: float
    host_bytes_per_second: float
    link_bytes_per_second: float
    disk_bytes_per_second: float
    quantized_weights_per_second: float


@dataclass(frozen=True, slots=True)
class Machine:
    """What may be used.

    Attributes:
        accelerator_budgets: Bytes that may be used of each accelerator, its context included; empty on a CPU.
        host_budget: Bytes that this process may use of main memory.
        host_baseline: Bytes that it uses before anything is loaded.
        rates: How fast it is.
    """

    accelerator_budgets: tuple[int, ...]
    host_budget: int
    host_baseline: int
    rates: Rates

    @property
    def value_bytes(self) -> int:
        """Bytes of a value in the compute dtype: bfloat16 on accelerators, float32 on a CPU, whatever the budget."""
        return 2 if self.accelerator_budgets else 4
