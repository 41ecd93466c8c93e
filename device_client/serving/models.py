"""A bundle and its runs as models of one server: one set of packed weights, and values that are swapped in.

A swap writes θ into place (0.1 % of the weights, or what a method adds beside them) and leaves everything else as it
is; keys and values of texts that were begun with other values stay valid for those texts. Costs k float32 for each run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from device_client.model.methods import tuned_by
from device_client.model.sparse_model import SparseModel
from device_client.planning.methods import TunedPart
from device_client.tasks.prompts import Prompts
from device_client.texts.asking import prompts_for
from device_client.tuning.run_directory import RunDirectory
from device_client.tuning.tuned_values import part_of_run, values_of_run


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What one model name means.

    Attributes:
        name: As requests name it.
        created: Seconds since 1970 at which its values were written.
        prompts: How questions become tokens.
        part: What of the weights its values are; None are the bundle's own.
        theta: Its values, float32; None are the bundle's own.
    """

    name: str
    created: int
    prompts: Prompts
    part: TunedPart | None = None
    theta: Tensor | None = None


class ServedModels:
    """All models of a server.

    Args:
        model: The bundle's, loaded.
        name: What the bundle itself is called.
        created: Seconds since 1970 at which the bundle came.
        runs: Runs of the bundle with best values; each is called by its own name.

    Raises:
        NotFound: A run has no best values.
        Conflict: Its values are not those that its configuration names.
        IntegrityError: Its files are damaged.
    """

    def __init__(self, model: SparseModel, name: str, created: int, runs: Sequence[RunDirectory]) -> None:
        self._model = model
        served = [ServedModel(name, created, prompts_for(model.tokenizer, None)), *(self._of_run(run) for run in runs)]
        self._by_name = {each.name: each for each in served}
        self._current: str | None = None

    def _of_run(self, run: RunDirectory) -> ServedModel:
        part = part_of_run(run, self._model.config)
        theta = values_of_run(run, part, self._model)
        return ServedModel(
            name=run.name,
            created=int(Path(run.path / "best.safetensors").stat().st_mtime),
            prompts=prompts_for(self._model.tokenizer, run.read_config()),
            part=part,
            theta=theta,
        )

    @property
    def all(self) -> list[ServedModel]:
        """All models, the bundle's own first."""
        return list(self._by_name.values())

    def find(self, name: str) -> ServedModel | None:
        """Return the model of that name, or None."""
        return self._by_name.get(name)

    def swap_in(self, name: str) -> None:
        """Compute with the values of that model from now on.

        Args:
            name: Of one of ``all``.
        """
        if name == self._current:
            return
        served = self._by_name[name]
        self._model.forget_method()
        if served.part is None or served.theta is None:
            self._model.write_theta(self._model.initial_theta())
        else:
            tuned_by(served.part, self._model, self._model).write_points([served.theta])
        self._current = name
