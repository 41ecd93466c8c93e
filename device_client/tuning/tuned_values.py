"""A model as a run tuned it: its bundle with the run's best values.

    sparse           θ = the bundle's own values, and in the place of those of the tuned blocks the run's
    other methods    the bundle as it is, and beside it what the run's values mean to the method

Which method and which blocks is in the run's config.json; the values' file names the method as well.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from device_client.model.methods import tuned_by
from device_client.model.sparse_model import SparseModel
from device_client.planning.methods import METHODS, TunedPart, tuned_part
from device_client.planning.tuned_blocks import ALL_BLOCKS
from device_client.tuning.run_directory import CONFIG, RunDirectory, load_theta
from shared.bundle.config import BundleConfig
from shared.errors import IntegrityError, InvalidRequest
from shared.tasks.examples import Example


def answer_as_tuned(run: RunDirectory, model: SparseModel) -> None:
    """Make a model answer, from now on, as a run's best values do.

    Args:
        run: A run made from the model's bundle.
        model: Loaded, at its own values.

    Raises:
        NotFound: The run has no best values yet.
        Conflict: Its values are of another number or method than the run's configuration says.
        IntegrityError: The values or config.json are damaged.
    """
    part = part_of_run(run, model.config)
    tuned_by(part, model, model).write_points([values_of_run(run, part, model)])


def values_of_run(run: RunDirectory, part: TunedPart, model: SparseModel) -> Tensor:
    """Return what ``tuned_by(part, model, model)`` takes for a run's best values, float32 on the host.

    Raises:
        NotFound: The run has no best values yet.
        Conflict: They are of another number or method than the run's configuration says.
        IntegrityError: They are damaged.
    """
    theta = load_theta(run.path, sensitive_count=part.value_count, method=part.method.name)
    if part.method.is_beside_weights:
        return theta
    return torch.cat([model.initial_theta()[: part.blocks.first_value].cpu(), theta])


def check_room(part: TunedPart, examples: Sequence[Example], config: BundleConfig) -> None:
    """Refuse rows that do not fit the context behind what a method puts in front of them.

    Args:
        part: What is tuned.
        examples: At least one.
        config: The bundle's configuration.

    Raises:
        InvalidRequest: A row does not fit.
    """
    context, in_front = config.tokenizer.context_length, part.method.positions_in_front
    longest = max(example.token_count for example in examples)
    if in_front and longest + in_front > context:
        raise InvalidRequest(
            f"a row of {longest} tokens behind the {in_front} positions of --method {part.method.name}",
            needed=f"at most {context - in_front} tokens: the model's context has {context}",
            next_step=f"--max-tokens {context - in_front}",
            param="max_tokens",
        )


def part_of_run(run: RunDirectory, config: BundleConfig) -> TunedPart:
    """Return what of its bundle a run tunes.

    Raises:
        IntegrityError: config.json names no method, or no blocks of the bundle.
    """
    settings = (run.read_json(CONFIG) or {}).get("settings")
    settings = settings if isinstance(settings, dict) else {}
    blocks, name = str(settings.get("blocks", ALL_BLOCKS)), str(settings.get("method", "sparse"))
    method = next((each for each in METHODS.values() if each.name == name), None)
    if method is None or any(settings.get(key) != number for key, number in method.recorded.items()):
        computed = ", ".join(f"{each.name} {dict(each.recorded) or ''}".strip() for each in METHODS.values())
        raise IntegrityError(
            f"{run.path / CONFIG} says that method {name[:80]!r} tuned it, with other numbers than this release has",
            needed=f"one of {computed}",
            next_step="restore that file, or use the release of zo-device that made the run",
        )
    try:
        return tuned_part(config, method.name, blocks)
    except InvalidRequest as error:
        raise IntegrityError(
            f"{run.path / CONFIG} says that blocks {blocks[:80]!r} were tuned",
            needed=f"all, or upper:N of the blocks of {config.source.id}",
            next_step="restore that file, or tune again",
        ) from error
