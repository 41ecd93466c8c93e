"""What a step costs where only upper blocks are tuned, as a share of what it costs over all blocks.

    all blocks     2q · (L·B·T + A·H·V)                     multiplications of a step
    N blocks       2q · (N·B·T + A·H·V)                     where what lies below was kept
    a new row      (L − N)·B·T more, once                   for both signs and all directions together
    written        as over all blocks                       each token of an answer goes through all of them

Attention's own products, norms and decoding go with the blocks too, so they change the share little. Counts
multiplications, not seconds: memory traffic and idle threads are not in it. Imports no torch.
Symbols: L blocks · N tuned blocks · B weights of a block · T tokens of all rows · A answers · H hidden · V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from device_client.planning.tuned_blocks import tuned_blocks
from device_client.planning.workload import Workload
from shared.bundle.config import BundleConfig
from shared.model_dimensions import dimensions_of


@dataclass(frozen=True, slots=True)
class StepCost:
    """Shares of the cost of a step over all blocks.

    Attributes:
        kept: Where the states of all its rows were kept.
        new: Where all its rows are new, as in the first epoch, or could not be kept.
    """

    kept: float
    new: float


def step_cost(config: BundleConfig, workload: Workload) -> StepCost:
    """Return what a step costs beside one over all blocks.

    Args:
        config: The bundle's configuration.
        workload: All rows of a step side by side, its queries and its tuned blocks.

    Raises:
        InvalidRequest: The model has fewer blocks.
        UnsupportedModel: Those blocks have no sensitive values.
    """
    dimensions = dimensions_of(config.architecture)
    tuned = tuned_blocks(config, workload.blocks)
    all_blocks = workload.tokens * sum(entry.element_count for entry in config.block_tensors)
    below = 0.0 if workload.cached_columns else all_blocks * tuned.first / tuned.count
    head = workload.answers * dimensions.hidden * dimensions.vocabulary
    passes = max(1, 2 * workload.queries)
    whole = passes * (all_blocks + head)
    return StepCost(kept=1 - passes * below / whole, new=1 - (passes - 1) * below / whole)
