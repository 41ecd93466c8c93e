"""A run's best values as a whole θ of its bundle.

    θ = the bundle's own values, and in the place of those of the tuned blocks the run's

A run of all blocks holds the whole θ; one of upper blocks holds its tail, and config.json says of which blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from device_client.model.sparse_model import SparseModel
from device_client.planning.tuned_blocks import ALL_BLOCKS, TunedBlocks, tuned_blocks
from device_client.tuning.run_directory import CONFIG, RunDirectory, load_theta
from shared.bundle.config import BundleConfig
from shared.errors import IntegrityError, InvalidRequest


def whole_theta(run: RunDirectory, model: SparseModel) -> Tensor:
    """Return the bundle's θ with a run's best values in it, float32 (k,), on the host.

    Args:
        run: A run made from the model's bundle.
        model: Loaded.

    Raises:
        NotFound: The run has no best values yet.
        Conflict: It has another number of values than the blocks that it tuned.
        IntegrityError: The values or config.json are damaged.
    """
    tuned = blocks_of_run(run, model.config)
    values = load_theta(run.path, sensitive_count=tuned.value_count)
    return torch.cat([model.initial_theta()[: tuned.first_value].cpu(), values])


def blocks_of_run(run: RunDirectory, config: BundleConfig) -> TunedBlocks:
    """Return which blocks of its bundle a run tunes.

    Raises:
        IntegrityError: config.json names no blocks of the bundle.
    """
    settings = (run.read_json(CONFIG) or {}).get("settings")
    named = settings.get("blocks", ALL_BLOCKS) if isinstance(settings, dict) else ALL_BLOCKS
    try:
        return tuned_blocks(config, str(named))
    except InvalidRequest as error:
        raise IntegrityError(
            f"{run.path / CONFIG} says that blocks {str(named)[:80]!r} were tuned",
            needed=f"all, or upper:N of the blocks of {config.source.id}",
            next_step="restore that file, or tune again",
        ) from error
