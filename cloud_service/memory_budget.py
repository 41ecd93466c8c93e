"""How much memory a preparation may use: two settings that travel from the command line or the service to the planner.

Neither changes the bundle. Knows nothing about machines or plans.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """What may be used.

    Attributes:
        max_accelerator_bytes: Of each accelerator; None allows all of it.
        max_host_bytes: Of main memory, by the preparation's process; None allows what is free.
    """

    max_accelerator_bytes: int | None = None
    max_host_bytes: int | None = None
