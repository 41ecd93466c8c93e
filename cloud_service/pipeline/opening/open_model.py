"""The beginning of all work on a model: which one it is, the workspace for it, the plan, the texts.

    with open_model(named, workspace=…, policy=…, progress=…) as opened:
        model = opened.plan(means)                          # no weight is loaded
        calibration, documents = opened.read_texts(model)   # the same ones for as long as the workspace lasts
        totals = opened.estimate_fisher(model, calibration)

Preparations and studies begin here, so that a study measures what a preparation would do. Each may look at what is
opened between two steps, and stop there. Knows nothing about what comes of the Fisher totals.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cloud_service.pipeline.calibration.sequences import Calibration
from cloud_service.pipeline.fisher.totals import FisherTotals
from cloud_service.pipeline.model.pinned_commit import unpinned_if_unsupported
from cloud_service.pipeline.named_input import NamedInput
from cloud_service.pipeline.opening.identity import ResolvedInput, resolve
from cloud_service.pipeline.opening.planned_model import Means, PlannedModel, memory_errors, plan_model
from cloud_service.pipeline.opening.saved_texts import SavedTexts
from cloud_service.pipeline.workspace import Workspace
from cloud_service.progress import ProgressSink
from cloud_service.sources import SourcePolicy
from shared.api import Stage


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """A model that work may begin on, or continue.

    Attributes:
        named: What was asked for.
        source: What that turned out to be.
        workspace: Checkpoints of this input alone.
        is_resumed: Whether there are some of an earlier attempt.
        policy: What may be read.
        progress: Told about every step; may raise ``Interrupted``.
    """

    named: NamedInput
    source: ResolvedInput
    workspace: Workspace
    is_resumed: bool
    policy: SourcePolicy
    progress: ProgressSink

    def plan(self, means: Means) -> PlannedModel:
        """Return the model with its memory plan; see ``plan_model``."""
        return plan_model(self.named, self.source, means, self.workspace, self.progress)

    def read_texts(self, model: PlannedModel) -> tuple[Calibration, list[str]]:
        """Return calibration tokens and evaluation documents; see ``SavedTexts``."""
        self.progress.stage(Stage.CALIBRATING, total=self.named.calibration.sequences, unit="sequences")
        texts = SavedTexts(self.named, self.source, model, self.policy, self.workspace, self.progress)
        documents = texts.evaluation_documents()
        return texts.calibration(), documents

    def estimate_fisher(self, model: PlannedModel, calibration: Calibration) -> FisherTotals:
        """Return the Fisher totals of the sequences; see ``PlannedModel.estimate_fisher``."""
        return model.estimate_fisher(calibration, self.workspace, self.progress)


@contextmanager
def open_model(
    named: NamedInput, *, workspace: Path, policy: SourcePolicy, progress: ProgressSink
) -> Iterator[OpenedModel]:
    """Yield the model that ``named`` names, with the workspace claimed for it.

    Args:
        named: What to work on.
        workspace: A folder of this work alone; checkpoints of another input are deleted.
        policy: What may be read.
        progress: Told about every step; may raise ``Interrupted``.

    Raises:
        ZoError: The model, a text, the hub or the disk; or, while it is open, memory: the subclass says who can act.
    """
    with unpinned_if_unsupported(workspace), memory_errors():
        source = resolve(named, policy, progress, workspace=workspace)
        checkpoints = Workspace(workspace)
        is_resumed = checkpoints.claim(source.fingerprint)
        yield OpenedModel(named, source, checkpoints, is_resumed, policy, progress)
