"""What a fine-tune will be, from a bundle, rows and settings: its digest, its folder, its work. Loads no model.

    settings digest = SHA-256 of (bundle digest, settings that decide, digests of the rows, how prompts are made)

Two runs of one digest are the same run, so its folder is named after it. Nothing is written.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from device_client.model.tunable_model import TunableModel
from device_client.planning.memory_fit import side_by_side
from device_client.planning.methods import TunedPart, tuned_part
from device_client.planning.workload import Workload
from device_client.tasks.checker import Checker
from device_client.tasks.gradable import goal_warnings
from device_client.tasks.scoring import Objective, settled_objective
from device_client.tasks.task_data import DataOptions, TaskData, load_task_data
from device_client.tuning.batches import BatchIndices
from device_client.tuning.make_goal import make_goal
from device_client.tuning.model_problem import ModelProblem
from device_client.tuning.run_directory import RunDirectory
from device_client.tuning.settings import ANSWER_TOKENS, Gradient, TuneSettings
from device_client.tuning.tuned_values import check_room
from shared.bundle.digest import digest_of_bytes
from shared.bundle.read import Bundle
from shared.errors import UnsupportedModel
from shared.model.tokenizer import BundleTokenizer


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """A run whose rows are read and whose folder is known; no model is loaded yet."""

    bundle: Bundle
    settings: TuneSettings
    part: TunedPart
    data: TaskData
    objective: Objective | None
    config: dict[str, Any] = field(repr=False)
    directory: RunDirectory

    @property
    def settings_digest(self) -> str:
        """Digest of everything that decides the run."""
        return str(self.config["settings_digest"])

    def workload(self, gradient: Gradient) -> Workload:
        """Return the most that the run asks of memory at once, with its own gradient or another."""
        data, settings = self.data, self.settings
        examples = [*data.training, *data.validation, *data.test]
        most = side_by_side(
            examples,
            settings.batch_size,
            queries=settings.queries,
            blocks=settings.blocks,
            method=settings.method,
            answer_tokens=settings.answer_tokens or 0,
        )
        return replace(most, queries=0, is_differentiated=True) if gradient == "first-order" else most

    def problem(
        self,
        model: TunableModel,
        tokenizer: BundleTokenizer,
        checker: Checker | None,
        rows: int,
        points_at_once: int = 1,
    ) -> ModelProblem[Any]:
        """Return what is minimised, by a model that tunes these values.

        Args:
            model: Computes at any θ.
            tokenizer: The bundle's.
            checker: Grades answers; None where the run has none.
            rows: Sequences that run side by side.
            points_at_once: Points θ that do.
        """
        data, settings = self.data, self.settings
        indices = BatchIndices(len(data.training), settings.batch_size, settings.seed)
        goal = make_goal(model, tokenizer, self.objective, settings.metric, settings.answer_tokens, checker)
        return ModelProblem(model, data.training, data.validation, goal, indices, rows, points_at_once)


def plan_run(
    bundle: Bundle, settings: TuneSettings, options: DataOptions, *, runs: Path, output: Path | None = None
) -> PlannedRun:
    """Read the rows and decide what the run is and where it lies; nothing is written.

    Args:
        bundle: A validated bundle.
        settings: What decides the run.
        options: Which rows.
        runs: Folder of runs, where the run is named after bundle, rows and settings.
        output: Its folder, instead.

    Raises:
        DataError: A row is unusable.
        InvalidRequest: An option is wrong.
        UnsupportedModel: The bundle, or its blocks that are to be tuned, have no sensitive values.
    """
    part = tuned_part(bundle.config, settings.method, settings.blocks)
    if part.value_count == 0:
        raise UnsupportedModel(
            f"bundle {bundle.digest} of {bundle.config.source.id} has no sensitive values: there is nothing to tune",
            needed="a bundle with at least one sensitive value, or another method",
            next_step="prepare the model with a share of sensitive weights, such as --sparsity 0.001, and pull it, or "
            "tune with --method lora",
        )
    settings = replace(settings, blocks=part.blocks.name)
    model_type = str(bundle.config.architecture["model_type"])
    if settings.metric == "checker":
        options = replace(options, judged_tokens=settings.answer_tokens or ANSWER_TOKENS)
    tokenizer = BundleTokenizer.from_bundle(bundle)
    data = load_task_data(options, tokenizer, model_type)
    examples = [*data.training, *data.validation, *data.test]
    objective = settled_objective(examples, settings.objective, settings.metric)
    check_room(part, examples, bundle.config)
    about_goal = goal_warnings(examples, settings.metric, settings.answer_tokens or ANSWER_TOKENS, tokenizer)
    data = replace(data, warnings=(*data.warnings, *about_goal))
    identity = {
        "bundle_digest": bundle.digest,
        "settings": settings.identity(objective),
        "rows": dict(data.digests),
        **data.prompts.as_config(),
    }
    digest = digest_of_bytes(json.dumps(identity, sort_keys=True).encode())
    source = options.task or (options.data.stem if options.data else "rows")
    name = f"{bundle.config.source.id.rpartition('/')[2]}-{source}-{digest.removeprefix('sha256:')[:8]}"
    counts = {"training": len(data.training), "validation": len(data.validation), "test": len(data.test)}
    labels = {"method": part.method.name} | {key: str(number) for key, number in part.method.recorded.items()}
    config = identity | {"settings_digest": digest, "source_model": bundle.config.source.id, "row_counts": counts}
    return PlannedRun(bundle, settings, part, data, objective, config, RunDirectory(output or runs / name, labels))
